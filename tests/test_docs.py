"""Every example in Python of these pages of docs/ runs, in the order of its page."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.models.drawn import images, network
from vgg_jax.models.layers import Conv
from vgg_jax.weights.lineage import LINEAGES
from vgg_jax.weights.load import abstract_network

DOCS = Path(__file__).parents[1] / "docs"
Names = dict[str, Any]


def losses(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Names:
    """Images x and y, and a VGG-16 of noise that is taken for torchvision's."""
    arrays, rng = {}, np.random.default_rng(0)
    channels = 3
    for i, row in enumerate(abstract_network("vgg16", num_classes=None).layers):
        if isinstance(row, Conv):
            kernel = rng.standard_normal((row.features, channels, 3, 3), np.float32)
            arrays[f"features.{i}.weight"] = kernel * (2 / (9 * channels)) ** 0.5
            arrays[f"features.{i}.bias"] = np.zeros(row.features, np.float32)
            channels = row.features
    known = LINEAGES["torchvision"]
    for (y, x, channel), value in known.first_filter.items():
        arrays["features.0.weight"][0, channel, y, x] = value
    arrays["features.0.bias"][: len(known.bias)] = known.bias
    path = folder / "vgg16.safetensors"
    save_file(arrays, path)
    fetching = sys.modules["vgg_jax.weights.fetch"]
    monkeypatch.setattr(fetching, "fetch", lambda name: path)
    x, y = rng.uniform(-1, 1, (2, 1, 20, 18, 3)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def explaining(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Names:
    """A narrow Network in Network, and images with their classes."""
    return {
        "model": nnx.merge(*network("nin_cifar", width=1 / 16, num_classes=7)),
        "images": jnp.asarray(images(2, 32, 48, 3)),
        "labels": np.array([5, 2]),
    }


# The pages, and what makes the names that their examples take from the reader.
PAGES: dict[str, Callable[[pytest.MonkeyPatch, Path], Names]] = {
    "explaining.md": explaining,
    "losses.md": losses,
}


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = PAGES[page](monkeypatch, tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = list(
        re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    )
    assert blocks
    for block in blocks:
        # Errors name the page and its line.
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block[1], str(DOCS / page), "exec")
        exec(code, names)
    if page == "losses.md":
        assert 0 < names["total"] < np.inf
        assert jax.tree.all(
            jax.tree.map(lambda a: np.isfinite(a).all(), names["gradients"])
        )

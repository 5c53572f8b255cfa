"""The examples in Python of docs/explaining.md run, in the order of the page."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models.drawn import images, network

PAGE = Path(__file__).parents[2] / "docs" / "explaining.md"


def test_the_examples_run() -> None:
    names: dict[str, Any] = {
        "model": nnx.merge(*network("nin_cifar", width=1 / 16, num_classes=7)),
        "images": jnp.asarray(images(2, 32, 48, 3)),
        "labels": np.array([5, 2]),
    }
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)

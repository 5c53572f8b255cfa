"""The example projects, run at a small size: each learns, and is short."""

import ast
import importlib
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

ROOT = Path(__file__).parents[1]
PROJECTS = ("segmentation", "transfer", "autoencoder")
MOST_LINES = 60  # of code
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports an example as its own folder's script would.

    What trains for some steps is compiled with the optimizations that other tests do
    without.
    """
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield importlib.import_module
    jax.config.update(name, before)


def lines_of_code(text: str) -> int:
    """Counts the lines that are neither blank, nor comments, nor docstrings."""
    lines: set[int] = set()
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= set(range(first.lineno, first.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("name", PROJECTS)
def test_what_a_user_writes_is_short(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert lines_of_code(text) < MOST_LINES
    assert f"python examples/{name}.py" in (ROOT / "examples/README.md").read_text()


def test_fcn_8s_learns_to_segment(load: Load, capsys: pytest.CaptureFixture) -> None:
    segmentation = load("segmentation")
    found = segmentation.main(steps=61, side=64, batch=8, width=1 / 8)
    printed = capsys.readouterr().out
    losses = [float(line.split()[-1]) for line in printed.splitlines()[:-1]]
    assert len(losses) == 4 and losses[-1] < 0.6 * losses[0]
    assert found > 0.25  # the ground alone has 0.2
    masks = segmentation.shapes(4, 48, seed=0)[1]
    assert segmentation.mean_iou(masks, masks) == 1


def test_scores_are_of_the_size_of_an_image_of_any_size(load: Load) -> None:
    segmentation = load("segmentation")

    def run(images: jax.Array) -> jax.Array:
        backbone = segmentation.create_model(
            "vgg11", num_classes=None, width=1 / 16, rngs=nnx.Rngs(0)
        )
        return segmentation.FCN8s(backbone, 4, nnx.Rngs(0))(images)

    for size in ((32, 32), (33, 97), (50, 7)):
        scores = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
        assert scores.shape == (2, *size, 4)


def test_enlarging_is_the_bilinear_transposed_convolution_of_fcn(load: Load) -> None:
    """Of the kernel that FCN's authors start from, away from the border."""
    scores = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype(np.float32)
    for factor in (2, 8):
        found = load("segmentation").enlarge(jnp.asarray(scores), factor)
        ramp = 1 - np.abs(np.arange(2 * factor) - factor + 0.5) / factor
        expected = np.zeros((1, 7 * factor, 8 * factor, 2))
        for row, column in np.ndindex(5, 6):
            place = expected[:, row * factor :, column * factor :]
            place[:, : 2 * factor, : 2 * factor] += (
                scores[:, row, column, None, None] * np.outer(ramp, ramp)[..., None]
            )
        half = factor // 2
        expected = expected[:, half:, half:][:, : 5 * factor, : 6 * factor]
        inner = np.s_[:, half:-half, half:-half]
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)


def test_transfer_beats_a_start_from_scratch(load: Load) -> None:
    with jax.default_prng_impl("rbg"):  # XLA compiles its numbers faster
        accuracy = load("transfer").main(steps=160, width=1 / 8)
    assert accuracy["after letters"] > 0.25  # 0.1 is chance
    assert accuracy["after letters"] > accuracy["from scratch"] + 0.1


def test_an_autoencoder_learns_with_lpips(load: Load) -> None:
    distances = load("autoencoder").main(steps=48, side=64)
    assert list(distances) == [*(f"step {n}" for n in range(0, 49, 12)), "mean color"]
    assert distances["step 48"] < 0.5 * distances["step 0"]
    assert distances["step 48"] < 0.9 * distances["mean color"]

"""The example projects, run at a small size: each learns, and is short."""

import ast
import importlib
import io
import tokenize
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

ROOT = Path(__file__).parents[1]
PROJECTS = ("segmentation", "transfer")
MOST_LINES = 60  # of code


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports an example as its own folder's script would."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


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


def test_fcn_8s_learns_to_segment(load, capsys: pytest.CaptureFixture) -> None:
    segmentation = load("segmentation")
    found = segmentation.main(steps=61, side=64, batch=8, width=1 / 8)
    printed = capsys.readouterr().out
    losses = [float(line.split()[-1]) for line in printed.splitlines()[:-1]]
    assert len(losses) == 4 and losses[-1] < 0.6 * losses[0]
    assert found > 0.25  # the ground alone is 0.2


def test_transfer_beats_a_start_from_scratch(load) -> None:
    accuracy = load("transfer").main(steps=160, width=1 / 8)
    assert accuracy["after letters"] > 0.4  # 0.1 is chance
    assert accuracy["after letters"] > accuracy["from scratch"] + 0.15

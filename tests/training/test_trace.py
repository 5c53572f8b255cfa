"""A trace has the steps that were asked for, and the layers' names."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vgg_jax.files import parse_path
from vgg_jax.training.trace import STEPS_BEFORE, Trace


@jax.jit
def step(x: jax.Array) -> jax.Array:
    with jax.named_scope("conv1_1"):
        return x @ x


def traced_steps(folder: Path) -> list[str]:
    """The numbers of the steps in the trace of a folder."""
    [path] = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [e["args"]["step_num"] for e in events if e.get("name") == "train"]


@pytest.mark.parametrize(
    ("asked", "steps", "traced"),
    [
        (2, STEPS_BEFORE + 4, ["13", "14"]),
        (3, STEPS_BEFORE + 1, ["13"]),  # the run ended before
        (0, STEPS_BEFORE + 4, None),
        (2, STEPS_BEFORE, None),
    ],
)
def test_the_steps_after_the_first_are_traced(
    asked: int,
    steps: int,
    traced: list[str] | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = jnp.ones((8, 8))
    with Trace(parse_path(tmp_path), asked) as trace:
        for number in range(10, 10 + steps):
            with trace.step(number):
                y = step(x)
            trace.add(y)
    said = capsys.readouterr().out
    assert ("traced no step" in said) == (traced is None and asked > 0)
    if traced is None:
        assert not list(tmp_path.iterdir())
    else:
        assert traced_steps(tmp_path) == traced
        [profile] = tmp_path.glob("plugins/profile/*/*.xplane.pb")
        assert b"conv1_1" in profile.read_bytes()


def test_steps_that_do_not_count_are_not_traced(tmp_path: Path) -> None:
    x = jnp.ones((8, 8))
    with Trace(parse_path(tmp_path), 1) as trace:
        for number in range(2 * STEPS_BEFORE + 2):
            counts = number >= STEPS_BEFORE
            with trace.step(number, counts=counts):
                y = step(x)
            trace.add(y, counts=counts)
    assert traced_steps(tmp_path) == [str(2 * STEPS_BEFORE)]


def test_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a workdir on a disk"):
        Trace(parse_path("gs://runs/a/profile"), 1)
    Trace(parse_path("gs://runs/a/profile"), 0)

"""A trace has the steps that were asked for, and the layers' names."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vgg_jax.files import parse_path
from vgg_jax.training.loop import train
from vgg_jax.training.metrics import RunLog
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
    ("asked", "steps", "traced", "expected"),
    [
        (2, STEPS_BEFORE + 4, ["13", "14"], "traced 2 of 2 steps in {}\n"),
        (3, STEPS_BEFORE + 1, ["13"], "traced 1 of 3 steps in {}: the run ended\n"),
        (0, STEPS_BEFORE + 4, None, ""),
        (2, STEPS_BEFORE, None, "traced no step: the run ended before\n"),
    ],
)
def test_the_steps_after_the_first_are_traced(
    asked: int,
    steps: int,
    traced: list[str] | None,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = jnp.ones((8, 8))
    with Trace(parse_path(tmp_path), asked) as trace:
        for number in range(10, 10 + steps):
            with trace.step(number):
                y = step(x)
            seconds = trace.add(y)
            is_last = number == 10 + STEPS_BEFORE + asked - 1
            assert (seconds > 0) == (is_last and asked > 0)
    assert capsys.readouterr().out == expected.format(tmp_path)
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


def test_what_is_no_step_ends_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trace(parse_path(tmp_path), 4) as trace:
        for number in range(STEPS_BEFORE + 6):
            if number == STEPS_BEFORE + 2:
                trace.end("a validation came")
            with trace.step(number):
                y = step(jnp.ones((8, 8)))
            trace.add(y)
    assert traced_steps(tmp_path) == [str(STEPS_BEFORE), str(STEPS_BEFORE + 1)]
    said = f"traced 2 of 4 steps in {tmp_path}: a validation came\n"
    assert capsys.readouterr().out == said


@pytest.mark.usefixtures("one_device")
def test_a_run_traces_its_steps_up_to_the_first_validation(
    tiny_config: Any,
    small_vgg: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(small_vgg)
    assert train(config, tmp_path, profile_steps=99) is None
    steps = traced_steps(tmp_path / "profile")
    assert 2 <= len(steps) < 99 and int(steps[0]) == STEPS_BEFORE
    said = f"traced {len(steps)} of 99 steps in {tmp_path}/profile: a validation came\n"
    printed = capsys.readouterr().out
    assert said in printed
    assert "validation:" not in printed[: printed.index(said)]
    [profile] = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"conv1_1" in profile.read_bytes()


@pytest.mark.usefixtures("one_device")
def test_the_rate_of_a_run_leaves_out_what_a_trace_takes_to_write(
    tiny_config: Any, small_vgg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out: list[float] = []
    monkeypatch.setattr(RunLog, "leave_out", lambda _, s: left_out.append(s))
    config = tiny_config(small_vgg)
    config.num_epochs = 1
    assert train(config, tmp_path, profile_steps=2) is None
    at = STEPS_BEFORE + 1
    assert left_out[at] > 0 and not any(left_out[:at] + left_out[at + 1 :])


def test_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a workdir on a disk"):
        Trace(parse_path("gs://runs/a/profile"), 1)
    Trace(parse_path("gs://runs/a/profile"), 0)

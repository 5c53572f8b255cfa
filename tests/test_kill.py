"""A run on Fashion-MNIST killed at any moment goes on to the same bits."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from etils import epath

from tests.bucket import Bucket
from vgg_jax.config import DataConfig
from vgg_jax.distributed import make_mesh
from vgg_jax.files import parse_path
from vgg_jax.training.optimizer import learning_rate
from vgg_jax.training.program import build_program
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.workdir.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.workdir.facts import is_finished, read_config

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}
STEPS, SAVED_EVERY, VALIDATED_EVERY = 40, 4, 9
Stop = Callable[["subprocess.Popen[str]", Any], None]


def command(workdir: Path | epath.Path) -> list[str]:
    """The steps of a run whose rate falls at a validation now and then."""
    data_dir = os.environ.get("VGG_JAX_TEST_DATA", DataConfig.data_dir)
    return [
        *(sys.executable, "train.py", "--workdir", str(workdir)),
        *("--config", "configs/fashion_mnist_vgg.py"),
        f"--config.data.data_dir={data_dir}",
        "--config.data.validation_fraction=0.005",
        "--config.model.name=vgg11",
        "--config.model.width=0.05",
        "--config.model.dropout=0.5",
        "--config.optimizer.learning_rate=0.05",
        "--config.optimizer.schedule=plateau",
        "--config.optimizer.warmup_epochs=0",
        "--config.optimizer.plateau_patience=1",
        "--config.optimizer.plateau_drops=9",
        "--config.optimizer.plateau_min_delta=0.5",
        "--config.batch_size=64",
        f"--config.num_epochs={(STEPS - 0.1) * 64 / 59_700}",
        f"--config.validate_every_epochs={VALIDATED_EVERY * 64 / 59_700}",
        f"--config.checkpoint_every_steps={SAVED_EVERY}",
        "--config.log_every_steps=3",
    ]


def finish(workdir: Path | epath.Path) -> None:
    done = subprocess.run(
        command(workdir), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_finished(workdir)


def kill(workdir: Path | epath.Path, stop: Stop) -> None:
    """Start the run, or go on with it, and kill -9 it when `stop` returns."""
    process = subprocess.Popen(
        command(workdir),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stop(process, workdir)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work


def at_step(step: int) -> Stop:
    """Once a line of this step or a later one is printed."""

    def stop(process: "subprocess.Popen[str]", workdir: Path) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if (found := re.match(r"step (\d+)/", line)) and int(found[1]) >= step:
                return
        raise AssertionError("the run ended before it was killed")

    return stop


def while_saving(after: int) -> Stop:
    """While a checkpoint past `after` is being written."""

    def stop(process: "subprocess.Popen[str]", workdir: Path) -> None:
        folder = workdir / "checkpoints"
        while process.poll() is None:
            for path in folder.glob("*tmp*"):
                if int(path.name.partition(".")[0]) > after:
                    return
            time.sleep(0.001)
        raise AssertionError("the run ended before it was killed")

    return stop


def while_saving_in_bucket(bucket: Bucket, after: int) -> Stop:
    """While a checkpoint past `after` is sent: a part is there, its end is not."""

    def is_half(step: str, names: list[str]) -> bool:
        done = any(name.endswith(f"/{step}/commit_success.txt") for name in names)
        return step.isdecimal() and int(step) > after and not done

    def stop(process: "subprocess.Popen[str]", workdir: Path) -> None:
        while process.poll() is None:
            names = bucket.names("whole/checkpoints/")
            if any(is_half(name.split("/")[2], names) for name in names):
                return
            time.sleep(0.001)
        raise AssertionError("the run ended before it was killed")

    return stop


def after_seconds(seconds: float) -> Stop:
    """So long after the first step."""

    def stop(process: "subprocess.Popen[str]", workdir: Path) -> None:
        at_step(1)(process, workdir)
        time.sleep(seconds)

    return stop


@functools.cache
def results(workdir: Path | epath.Path) -> tuple[Any, Any, list[dict[str, float]]]:
    """The last state, its plateau, and the metrics that depend on no clock."""
    config = read_config(workdir)
    metric = f"validation_{config.optimizer.metric}"
    [*_, last] = saved_steps(workdir)
    abstract = build_program(config, make_mesh(jax.devices()[:1])).state
    with Checkpoints(workdir, metric, read_only=True) as checkpoints:
        state, plateau = checkpoints.restore(abstract, last)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for clocked in ("images_per_second", "waiting_for_images"):
            row.pop(clocked, None)
    return jax.device_get(state), plateau, rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish(workdir)
    state, plateau, rows = results(workdir)
    assert plateau.drops > 0 and rows[-1]["step"] == STEPS  # there is a state to lose
    config = read_config(workdir).optimizer
    rate = config.learning_rate * config.plateau_factor**plateau.drops
    assert learning_rate(state.opt_state) == np.float32(rate)
    expected = Plateau()
    for row in rows:
        if "validation_loss" in row and row["step"] < STEPS:  # that one is extra
            expected.update(row[f"validation_{config.metric}"], config)
    assert plateau == expected
    assert [r["step"] for r in rows if "train_loss" in r] == sorted(
        step
        for step in range(1, STEPS + 1)
        if not (step % 3 and step % SAVED_EVERY and step % VALIDATED_EVERY)
    )
    return workdir


def check_same(workdir: Path | epath.Path, whole: Path) -> None:
    ours, theirs = results(workdir), results(whole)
    chex.assert_trees_all_equal(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]
    assert saved_steps(workdir) == saved_steps(whole)


def test_killed_while_saving_and_while_writing_metrics(
    whole: Path, tmp_path: Path
) -> None:
    kill(tmp_path, while_saving(after=12))
    saved = saved_steps(tmp_path)[-1]
    assert 8 <= saved <= 16  # no more is lost than the time since the last save
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "train_lo')
    finish(tmp_path)
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_killed_while_saving_in_a_bucket(
    whole: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ENVIRONMENT", ENVIRONMENT | bucket.environment)
    workdir = parse_path("gs://runs/whole")
    kill(workdir, while_saving_in_bucket(bucket, after=12))
    assert 4 <= saved_steps(workdir)[-1] <= 16
    kill(workdir, while_saving_in_bucket(bucket, after=24))
    kill(workdir, at_step(30))
    finish(workdir)
    check_same(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        (at_step(1),),
        (at_step(4),),
        (at_step(9),),
        (at_step(19),),
        (at_step(39),),
        (while_saving(0),),
        (while_saving(8), while_saving(16), at_step(27)),
        (after_seconds(0.05), after_seconds(0.1), after_seconds(0.2)),
    ],
    ids=lambda stops: f"{len(stops)} kills",
)
def test_killed_anywhere(stops: tuple[Stop, ...], whole: Path, tmp_path: Path) -> None:
    for stop in stops:
        kill(tmp_path, stop)
    finish(tmp_path)
    check_same(tmp_path, whole)

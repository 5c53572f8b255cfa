"""A run in a bucket is the same as on a disk, whatever ends it."""

import dataclasses
import json
from http import HTTPStatus
from pathlib import Path

import chex
import jax.numpy as jnp
import pytest
from etils import epath

from tests.bucket import Bucket
from tests.training.conftest import TinyConfig
from vgg_jax.config import Config
from vgg_jax.evaluation.evaluate import run_evaluation
from vgg_jax.files import parse_path
from vgg_jax.report.__main__ import main as report
from vgg_jax.report.artifacts import write_artifacts
from vgg_jax.training.loop import train
from vgg_jax.training.metrics import MetricWriter
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState
from vgg_jax.training.workdir.checkpoint import Checkpoints, SaveError, saved_steps
from vgg_jax.training.workdir.facts import claim, read_config

pytestmark = pytest.mark.usefixtures("one_device")
RUN = "gs://runs/a/vgg11"


def metrics(workdir: epath.Path | Path) -> list[dict[str, float]]:
    """The lines that depend on no clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for clocked in ("images_per_second", "waiting_for_images"):
            row.pop(clocked, None)
    return rows


def save(workdir: epath.Path, config: Config, step: int) -> TrainState:
    """Saves a state of a few numbers, and returns it."""
    state = TrainState(
        step=jnp.int32(step),
        params={"fc8": {"kernel": jnp.arange(6.0) + step}},
        batch_stats={},
        opt_state={"momentum": jnp.ones(6)},
    )
    claim(workdir, config)
    with Checkpoints(workdir, "validation_top1_error", read_only=False) as checkpoints:
        checkpoints.save(state, Plateau(), None)
        checkpoints.wait()
    return state


def test_what_a_run_leaves_in_a_bucket_is_read_from_there(
    bucket: Bucket, tiny_config: TinyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, config = parse_path(RUN), tiny_config()
    save(workdir, config, 4)
    state = save(workdir, config, 8)
    with MetricWriter(workdir, 0) as writer:
        writer.write(1, {"train_loss": 2.0, "epoch": 1.0})
        writer.write(2, {"train_loss": 1.0, "epoch": 1.0})
    with MetricWriter(workdir, 1) as writer:  # the run goes on from step 1
        writer.write(2, {"train_loss": 1.5, "epoch": 1.0})
    assert [row["train_loss"] for row in metrics(workdir)] == [2.0, 1.5]
    # The remains of a save that a kill cut short count for nothing.
    parse_path(f"{RUN}/checkpoints/12/params/manifest.ocdbt").write_text("half")
    assert saved_steps(workdir) == [8] and read_config(workdir) == config
    with Checkpoints(workdir, "validation_top1_error", read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(state)
    assert restored is not None
    chex.assert_trees_all_equal(restored[0], state)
    assert report(["--workdir", RUN]) == 0
    written = {name.removeprefix("a/vgg11/") for name in bucket.names("a/vgg11/")}
    assert {"config.json", "metrics.jsonl", "report.html"} <= written
    assert any(name.startswith("tensorboard/events") for name in written)
    assert capsys.readouterr().err == ""


def test_a_bucket_that_refuses_tensorboard_stops_no_run(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.refuses = lambda _, path: (
        HTTPStatus.FORBIDDEN if "tensorboard" in path else None
    )
    with MetricWriter(parse_path(RUN), 0) as writer:
        for step in range(50):  # more than the queue of its thread holds
            writer.write(step, {"train_loss": 1.0, "epoch": 1.0})
    assert len(metrics(parse_path(RUN))) == 50
    assert "is not written: gs://runs/a/vgg11/tensorboard" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(
    bucket: Bucket,
    tiny_config: TinyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config()
    train(config, tmp_path / "vgg11")
    short = dataclasses.replace(config, num_epochs=1.0)
    train(short, RUN)
    assert saved_steps(parse_path(RUN)) == [9]
    # The remains of a save that a kill cut short count for nothing.
    parse_path(f"{RUN}/checkpoints/12/params/manifest.ocdbt").write_text("half")
    assert saved_steps(parse_path(RUN)) == [9]
    train(config, RUN)
    assert "step 9 to 18" in capsys.readouterr().out
    assert saved_steps(parse_path(RUN)) == saved_steps(tmp_path / "vgg11") == [18]
    assert not bucket.names("a/vgg11/checkpoints/12")
    ours, theirs = metrics(parse_path(RUN)), metrics(tmp_path / "vgg11")
    assert [row for row in ours if row["step"] != 9] == [
        row for row in theirs if row["step"] != 9
    ]
    # The next run starts from it, and what reads a run reads it.
    more = dataclasses.replace(config, init_from="vgg11", num_epochs=0.5)
    train(more, "gs://runs/a/again")
    assert "from step 18 of gs://runs/a/vgg11" in capsys.readouterr().out
    for _ in range(2):
        write_artifacts(run_evaluation([RUN, "gs://runs/a/again"], config, ["center"]))
    assert "kept in gs://runs/a/vgg11/predictions" in capsys.readouterr().err
    assert report(["--workdir", RUN]) == 0
    written = {name.removeprefix("a/vgg11/") for name in bucket.names("a/vgg11/")}
    assert {"report.html", "confusion.png", "eval.json", "examples.npz"} <= written
    assert any(name.startswith("tensorboard/events") for name in written)


def test_a_save_that_a_bucket_refuses_is_said_in_a_line(
    bucket: Bucket, tiny_config: TinyConfig
) -> None:
    bucket.refuses = lambda method, path: (
        HTTPStatus.FORBIDDEN if method != "GET" and "checkpoints" in path else None
    )
    with pytest.raises(SaveError) as error:
        save(parse_path(RUN), tiny_config(), 4)
    assert "cannot save in gs://runs/a/vgg11/checkpoints" in str(error.value)
    assert "roles/storage.objectUser" in str(error.value)
    assert "disk" not in str(error.value) and "\n" not in str(error.value)

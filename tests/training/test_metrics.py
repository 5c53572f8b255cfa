"""What the values of a line must not hide."""

import dataclasses
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from configs.fashion_mnist_vgg import get_config
from vgg_jax.training.metrics import (
    SECONDS_TO_JUDGE,
    MetricWriter,
    RunLog,
    Throughput,
    TrainingDiverged,
    summarize_training,
    summarize_validation,
)
from vgg_jax.training.objectives import Sums
from vgg_jax.training.schedule import Timetable


def sums(loss: float, weight: float, norm: float = 1.0) -> Sums:
    values = {"loss": loss, "top1_error": weight / 2, "top5_error": 0.0}
    values |= {"weight": weight, "gradient_norm": norm}
    return {name: jnp.float32(value) for name, value in values.items()}


def validation(loss: float, weight: float) -> Sums:
    return {k: v for k, v in sums(loss, weight).items() if k != "gradient_norm"}


def test_means_weigh_every_image_once() -> None:
    values = summarize_training([sums(8.0, 8.0), sums(1.0, 4.0, 3.0)], 20, batch_size=8)
    assert values == {
        "train_loss": 0.75,
        "train_top1_error": 0.5,
        "gradient_norm": 3.0,
        "skipped_images": 4.0,
    }
    assert "skipped_images" not in summarize_training([sums(8.0, 8.0)], 20, 8)
    assert summarize_validation(validation(4.0, 8.0), 9) == {
        "validation_loss": 0.5,
        "validation_top1_error": 0.5,
        "validation_top5_error": 0.0,
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_divergence(bad: float) -> None:
    for wrong in (sums(bad, 8.0), sums(8.0, 8.0, norm=bad)):
        with pytest.raises(TrainingDiverged, match="in steps 19 to 20"):
            summarize_training([wrong, sums(8.0, 8.0)], 20, batch_size=8)
    with pytest.raises(TrainingDiverged, match="validation loss after step 9"):
        summarize_validation(validation(bad, 4.0), 9)


def test_images_that_cannot_be_read_are_no_divergence() -> None:
    with pytest.raises(ValueError, match="no training image of steps 19 to 20 could"):
        summarize_training([sums(0.0, 0.0), sums(0.0, 0.0)], 20, batch_size=8)
    with pytest.raises(ValueError, match="no validation image could"):
        summarize_validation(validation(0.0, 0.0), 9)


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, checksum, data, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_has_groups_and_the_file_its_names(tmp_path: Path) -> None:
    training = {"train_loss": 2.0, "learning_rate": 0.1, "epoch": 0.5}
    validation = {"validation_loss": 3.0, "validation_top5_error": 0.5, "epoch": 0.5}
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(7, training)
        writer.write(7, validation)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"step": 7, **training},
        {"step": 7, **validation},
    ]
    (events,) = (tmp_path / "tensorboard").iterdir()
    found = [*map(Event.FromString, records(events))]
    # What an earlier file has from step 1 on is hidden.
    starts = [e.step for e in found if e.session_log.status == SessionLog.START]
    assert starts == [1] and found[0].file_version == "brain.Event:2"
    points = {
        value.tag: (event.step, round(value.simple_value, 6))
        for event in found
        for value in event.summary.value
    }
    assert points == {
        "train/loss": (7, 2.0),
        "train/learning_rate": (7, 0.1),
        "train/epoch": (7, 0.5),
        "validation/loss": (7, 3.0),
        "validation/top5_error": (7, 0.5),
        "validation/epoch": (7, 0.5),
    }


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(time, "monotonic", moved)
    return moved


def test_compilation_and_pauses_do_not_count(clock: Clock) -> None:
    throughput = Throughput(total_steps=100)
    assert not throughput.is_started and throughput.time_left() == "?"
    clock.now += 50  # the first step compiles
    throughput.restart(11)
    assert throughput.is_started and throughput.time_left() == "?"
    clock.now += 2
    assert throughput.measure(21) == 5
    clock.now += 30  # a validation
    throughput.restart(21)
    clock.now += 1
    clock.now += 60  # a trace is written
    throughput.leave_out(60)
    clock.now += 3
    assert throughput.measure(31) == 2.5
    assert throughput.time_left() == "21s"  # 69 steps at 20 steps in 6 s


def slow_batches(clock: Clock, seconds: float) -> Iterator[dict[str, jax.Array]]:
    while True:
        clock.now += seconds
        yield {}


@pytest.mark.parametrize("is_busy", [False, True])
def test_waiting_for_images_is_told_where_the_devices_stand_still(
    is_busy: bool,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(get_config(), batch_size=8)
    if is_busy:  # the step before is not ready when the batch is there
        array = type(jnp.zeros(()))
        monkeypatch.setattr(array, "is_ready", lambda _: False)
    with RunLog(tmp_path, Timetable.for_config(config, 800), {}, 0) as log:
        batches = slow_batches(clock, 0.25 * SECONDS_TO_JUDGE)
        rows = []
        for step in range(1, 8):
            log.next_batch(batches)
            clock.now += 100  # a trace is written, before the clock starts and after
            log.leave_out(100)
            clock.now += 0.75 * SECONDS_TO_JUDGE
            log.add(step, sums(1.0, 8.0))
            if step > 1:
                log.end_window(step, 0.1)
                window = log.take_window()
                assert window is not None and log.take_window() is None
                rows.append(log.summarize(window))
                log.write_training(step, rows[-1])
    expected = 0.0 if is_busy else 0.25
    assert [row["waiting_for_images"] for row in rows] == [expected] * 6
    printed = capsys.readouterr()
    assert f"waiting {expected:.0%}" in printed.out
    # Once, with what to change.
    assert printed.err.count("data.num_workers") == (not is_busy)

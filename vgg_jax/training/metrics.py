"""This module averages the metrics of a run, writes them and prints them."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils.epath import Path
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import directory_check, register_writer_factory
from tensorboardX.summary import scalar

from vgg_jax import buckets, distributed
from vgg_jax.console import format_seconds
from vgg_jax.files import LineLog, is_in_bucket, naming, parse_metrics
from vgg_jax.training.objectives import Sums, means
from vgg_jax.training.schedule import Timetable

T = TypeVar("T")

# The means of training steps that are written, where there are such sums; validation
# has all of them.
TRAINING_MEANS = ("loss", "top1_error", "box_error")

# A run says that its devices wait for images where they do for more than this share of
# the time, once it has been measured for so long.
MOST_WAITING, SECONDS_TO_JUDGE = 0.1, 20.0


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def summarize_training(
    sums: Sequence[Sums], last_step: int, batch_size: int
) -> dict[str, float]:
    """Averages the sums that `train_step` returned for the steps up to `last_step`.

    Raises:
        TrainingDiverged: the loss or a gradient is not a finite number.
        ValueError: no image could be decoded.
    """
    steps = [{name: np.asarray(value) for name, value in step.items()} for step in sums]
    span = f"steps {last_step - len(steps) + 1} to {last_step}"
    total = _add(steps, f"training image of {span}")
    mean = means(total)
    norms = [float(step["gradient_norm"]) for step in steps]
    if not math.isfinite(mean["loss"] + sum(norms)):
        raise TrainingDiverged(
            f"the loss or the gradient is not a finite number in {span} "
            f"(loss {mean['loss']})"
        )
    values = {
        **{f"train_{name}": mean[name] for name in TRAINING_MEANS if name in mean},
        "gradient_norm": norms[-1],
    }
    skipped = len(steps) * batch_size - float(total["weight"])
    return values | ({"skipped_images": skipped} if skipped else {})


def summarize_validation(sums: Mapping[str, Any], step: int) -> dict[str, float]:
    """Averages the sums over the validation images after `step`.

    Raises:
        TrainingDiverged: the loss is not a finite number.
        ValueError: no image could be decoded.
    """
    mean = means(_add([sums], "validation image"))
    if not math.isfinite(mean["loss"]):
        raise TrainingDiverged(
            f"the validation loss after step {step} is not a finite number "
            f"({mean['loss']})"
        )
    return {f"validation_{name}": value for name, value in mean.items()}


def _add(steps: Sequence[Mapping[str, Any]], images: str) -> Sums:
    """Adds up sums; `images` says in an error message whose they are."""
    total = {name: np.sum([sums[name] for sums in steps]) for name in steps[0]}
    if not total["weight"]:
        raise ValueError(
            f"no {images} could be decoded; look at the files that the warnings name "
            "(with data.on_corrupt_image=raise the first one stops the run)"
        )
    return total


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and `workdir/tensorboard`.

    What an interrupted run wrote past `step`, where this one starts, is taken out. Of
    several hosts only the first writes.
    """

    def __init__(self, workdir: Path, step: int):
        self._writes = distributed.is_first()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"
        self._lines = LineLog(path, _lines_up_to(step, path) if path.exists() else ())
        self._curves = Curves(workdir / "tensorboard", step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is not yet written."""
        if self._writes:
            self._lines.close()
            self._curves.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line to the file, and a point to each curve of TensorBoard.

        In TensorBoard the names are in groups: `train_loss` is `train/loss`.

        Raises:
            OSError: a file cannot be written; the error names it.
        """
        if not self._writes:
            return
        self._lines.append(json.dumps({"step": step, **values}) + "\n")
        is_validation = any(name.startswith("validation_") for name in values)
        group = "validation" if is_validation else "train"
        tags = {f"{group}/{n.removeprefix(f'{group}_')}": v for n, v in values.items()}
        self._curves.add(step, tags)

    def flush(self) -> None:
        """Sees to it that all lines are in the file."""
        if self._writes:
            self._lines.flush()


class Curves:
    """A file of TensorBoard's, to which points of curves are added.

    On a disk a point is there when `add` returns; to a bucket the whole file is sent,
    at most every `SECONDS`. The writer of tensorboardX would write in a thread of its
    own, which ends at the first error: after that a run would wait for it for good.

    Args:
        folder: where the file is made.
        step: the step to start at; TensorBoard hides what an earlier file has past it.
    """

    SECONDS = 120.0

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._pause = self.SECONDS if is_in_bucket(folder) else 0.0
        self._flushed = time.monotonic()
        if is_in_bucket(folder):
            register_writer_factory("gs", buckets.EventFiles())
        directory_check(str(folder))
        with naming(folder):
            self._file = EventsWriter(str(folder / "events"))
            self._write(step + 1, file_version="brain.Event:2")
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each name.

        Raises:
            OSError: the file cannot be written; the error names the folder.
        """
        with naming(self._folder):
            for tag, value in values.items():
                event = Event(
                    step=step, wall_time=time.time(), summary=scalar(tag, value)
                )
                self._file.write_event(event)
            if time.monotonic() - self._flushed >= self._pause:
                self._file.flush()
                self._flushed = time.monotonic()

    def _write(self, step: int, **what: Any) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **what))

    def close(self) -> None:
        """Writes what is not yet written."""
        with naming(self._folder):
            self._file.close()


class Throughput:
    """Measures training steps a second and the time that is left.

    Compilation, validation and saving do not count: `restart` leaves them out, and
    `leave_out` what is between two steps.
    """

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._counted_steps = 0
        self._counted_seconds = 0.0
        self._counted_waiting = 0.0
        self.is_started = False
        self.waiting = 0.0

    def restart(self, step: int) -> None:
        """Counts steps and time from here on."""
        self._step = step
        self._since = time.monotonic()
        self._waited = 0.0
        self.is_started = True

    def leave_out(self, seconds: float) -> None:
        """Leaves time since the last call of `restart` or `measure` out."""
        if self.is_started:
            self._since += seconds

    def wait(self, seconds: float) -> None:
        """Counts time in which the devices had nothing to do, waiting for images."""
        if self.is_started:
            self._waited += seconds

    def measure(self, step: int) -> float:
        """Returns steps a second since the last call of `restart` or `measure`."""
        steps, seconds = step - self._step, time.monotonic() - self._since
        self._counted_steps += steps
        self._counted_seconds += seconds
        self._counted_waiting += self._waited
        self.waiting = min(1.0, self._waited / seconds) if seconds > 0 else 0.0
        self.restart(step)
        return steps / seconds if seconds > 0 else float("inf")

    def share_waiting(self) -> float | None:
        """Returns the share of all time that was waited; None before it can be told."""
        if self._counted_seconds < SECONDS_TO_JUDGE:
            return None
        return self._counted_waiting / self._counted_seconds

    def time_left(self) -> str:
        """Returns the time to the last step at the mean speed, as "1h02m"; or "?"."""
        if not self._counted_steps:
            return "?"
        steps_left = max(0, self._total_steps - self._step)
        return format_seconds(self._counted_seconds / self._counted_steps * steps_left)


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps between two lines of a run.

    Args:
        last_step: the number of the last one.
        rate: the learning rate of the last one.
        sums: the sums that `train_step` returned, one element a step.
    """

    last_step: int
    rate: float
    sums: list[Sums]


class RunLog:
    """Collects the sums of a run's steps; prints and writes lines of their means.

    The host never waits for the step that it has just given to the devices, so that
    they always have one to compute: `add` of a step waits for the one before, and a
    window that has ended is read after that.

    Args:
        workdir: the run's folder.
        timetable: the run's timetable, in steps.
        errors: the errors to print, each with a readable name; see `Task`.
        step: the number of steps that the run has done before.
    """

    def __init__(
        self, workdir: Path, timetable: Timetable, errors: Mapping[str, str], step: int
    ):
        self._timetable = timetable
        self._errors = errors
        self._writer = MetricWriter(workdir, step)
        self._throughput = Throughput(timetable.total_steps)
        self._sums: list[Sums] = []  # of the steps of the window that has not ended
        self._window: Window | None = None  # ended, and not yet written
        self._last: Sums = {}
        self._warned = False

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._writer.__exit__(*exception)

    def next_batch(self, batches: Iterator[dict[str, T]]) -> dict[str, T]:
        """Takes a batch, and counts the time if the devices stood still at its end.

        At most that long they had nothing to do: the step before was ready.
        """
        began = time.monotonic()
        batch = next(batches)
        # mypy knows the abstract class of arrays alone.
        if all(value.is_ready() for value in self._last.values()):  # type: ignore[attr-defined]
            self._throughput.wait(time.monotonic() - began)
        return batch

    def add(self, step: int, sums: Sums) -> None:
        """Takes the sums of a step, and waits for those of the step before it."""
        before, self._last = self._last, sums
        self._sums.append(sums)
        for value in sums.values():
            value.copy_to_host_async()
        if not self._throughput.is_started:  # the first step's time is compilation
            jax.block_until_ready(sums)
            self._throughput.restart(step)
        else:  # the host runs one step ahead of the devices
            jax.block_until_ready(before)

    def end_window(self, step: int, rate: float) -> None:
        """Ends the window with a step of this learning rate; `take_window` gives it."""
        self._window = Window(step, rate, self._sums)
        self._sums = []

    def take_window(self) -> Window | None:
        """Returns the window that has ended since the last call, if one has."""
        window, self._window = self._window, None
        return window

    def summarize(self, window: Window) -> dict[str, float]:
        """Averages the steps of a window; waits for the last one.

        Raises:
            TrainingDiverged, ValueError: where `summarize_training` raises them.
        """
        step, batch_size = window.last_step, self._timetable.batch_size
        values = summarize_training(window.sums, step, batch_size)
        speed = self._throughput.measure(step)
        return values | {
            "epoch": self._timetable.epoch(step),
            "learning_rate": window.rate,
            "images_per_second": speed * batch_size,
            "waiting_for_images": self._throughput.waiting,
        }

    def write_training(self, step: int, values: Mapping[str, float]) -> None:
        """Writes and prints the values that `summarize` gave."""
        self._writer.write(step, values)
        print(
            f"{self._line(step, 'train', values)}  rate {values['learning_rate']:g}"
            f"  {values['images_per_second']:,.0f} images/s"
            f"  waiting {values['waiting_for_images']:.0%}"
            f"  {self._throughput.time_left()} left",
            flush=True,
        )
        share = self._throughput.share_waiting()
        if share is not None and share > MOST_WAITING and not self._warned:
            self._warned = True
            distributed.warn(
                f"for {share:.0%} of the time the devices wait for images; "
                "data.num_workers decodes in so many processes and data.num_threads "
                "in so many threads of each: as many in all as the host has cores; "
                "requirements-jpeg.txt decodes of a JPEG only the crop"
            )

    def write_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes and prints the values of a validation."""
        self._writer.write(step, {**values, "epoch": self._timetable.epoch(step)})
        print(self._line(step, "validation", values), flush=True)

    def flush(self) -> None:
        """Sees to it that what was written is kept, as what a checkpoint follows on."""
        self._writer.flush()

    def leave_out(self, seconds: float) -> None:
        """Leaves time since the last line out of the speed of training."""
        self._throughput.leave_out(seconds)

    def restart_clock(self, step: int) -> None:
        """Leaves the time since the last line out of the speed of training."""
        self._throughput.restart(step)

    def _line(self, step: int, kind: str, values: Mapping[str, float]) -> str:
        errors = "".join(
            f"  {readable} {values[f'{kind}_{name}']:.2%}"
            for name, readable in self._errors.items()
            if f"{kind}_{name}" in values
        )
        return (
            f"step {step:,}/{self._timetable.total_steps:,}  "
            f"epoch {self._timetable.epoch(step):.2f}  {kind}: "
            f"loss {values[f'{kind}_loss']:.4f}{errors}"
        )


def _lines_up_to(step: int, path: Path) -> list[str]:
    """Reads the whole lines of a metrics.jsonl that are of `step` or an earlier one.

    Raises:
        ValueError: a line is not the metrics of a step; the message names it.
    """
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # cut short, the last thing a killed run wrote
            break
        if parse_metrics(line, number, path)["step"] <= step:
            kept.append(line.decode())
    return kept

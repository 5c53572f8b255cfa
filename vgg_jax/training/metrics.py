"""The metrics of a run: averages of steps, as JSON lines and TensorBoard's events."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter

from vgg_jax import distributed
from vgg_jax.files import write_text
from vgg_jax.training.objectives import Sums, means

# Of training, where the sums have them; validation shows all.
SHOWN = ("loss", "top1_error", "box_error")


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def summarize_training(
    sums: Sequence[Sums], last_step: int, batch_size: int
) -> dict[str, float]:
    """Means over the steps up to `last_step`, from what `train_step` gave.

    Raises:
        TrainingDiverged: the loss or a gradient is not a finite number.
        ValueError: no image could be decoded.
    """
    steps = jax.device_get(list(sums))
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
        **{f"train_{name}": mean[name] for name in SHOWN if name in mean},
        "gradient_norm": norms[-1],
    }
    skipped = len(steps) * batch_size - float(total["weight"])
    return values | ({"skipped_images": skipped} if skipped else {})


def summarize_validation(sums: Sequence[Sums], step: int) -> dict[str, float]:
    """Means over the batches of the validation after `step`, from `eval_step`'s sums.

    Raises:
        TrainingDiverged: the loss is not a finite number.
        ValueError: no image could be decoded.
    """
    mean = means(_add(jax.device_get(list(sums)), "validation image"))
    if not math.isfinite(mean["loss"]):
        raise TrainingDiverged(
            f"the validation loss after step {step} is not a finite number "
            f"({mean['loss']})"
        )
    return {f"validation_{name}": value for name, value in mean.items()}


def _add(steps: Sequence[Sums], what: str) -> Sums:
    total = {name: np.sum([sums[name] for sums in steps]) for name in steps[0]}
    if not total["weight"]:
        raise ValueError(
            f"no {what} could be decoded; look at the files that the warnings name "
            "(with data.on_corrupt_image=raise the first one stops the run)"
        )
    return total


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and `workdir/tensorboard`.

    What an interrupted run wrote past `step`, where this one starts, is taken out. Of
    several hosts the first writes, the others nothing.
    """

    def __init__(self, workdir: Path, step: int):
        self._writes = distributed.is_first()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(_lines_up_to(step, path)))
        self._file: TextIO = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of the file, one point of each curve."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)


def _lines_up_to(step: int, path: Path) -> list[str]:
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        # A line cut short is the last thing a killed run wrote.
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    return kept

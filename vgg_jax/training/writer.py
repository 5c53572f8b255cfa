"""Metrics of a run: one JSON object a line, and TensorBoard's events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tensorboardX import SummaryWriter

from vgg_jax import hosts
from vgg_jax.training.workdir import write_atomically


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and `workdir/tensorboard`.

    What an interrupted run wrote past `step`, where this one starts, is taken out. Of
    several hosts the first writes, the others nothing.
    """

    def __init__(self, workdir: Path, step: int):
        self._writes = hosts.is_first()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            write_atomically(path, "".join(_lines_up_to(step, path)))
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

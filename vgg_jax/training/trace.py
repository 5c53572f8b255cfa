"""This module writes what some training steps do, for the profiler's viewer."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils.epath import Path

from vgg_jax.files import is_in_bucket

# The first steps of a process compile, and fill caches and queues.
STEPS_BEFORE = 3


class Trace:
    """Traces some steps of a run: what the host and the devices do, and in which layer.

    Args:
        folder: where the trace goes; a viewer of XLA's profiles opens it.
        steps: how many steps are traced; 0 for none.

    Raises:
        ValueError: the folder is in a bucket, where the profiler cannot write.
    """

    def __init__(self, folder: Path, steps: int):
        if steps and is_in_bucket(folder):
            raise ValueError(
                f"{folder}: expected a workdir on a disk to write a trace to; profile "
                "a run of a few steps in another --workdir"
            )
        self._folder = folder
        self._first, self._end = STEPS_BEFORE, STEPS_BEFORE + steps
        self._done = 0  # of the steps that count
        self._is_on = self._has_begun = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.end("the run ended")
        if self._first < self._end and not self._has_begun:
            print("traced no step: the run ended before", flush=True)

    @contextlib.contextmanager
    def step(self, number: int, *, counts: bool = True) -> Iterator[None]:
        """Marks what is done within as the step of this number.

        Args:
            number: the steps of the run before it.
            counts: whether it is a step as those that follow, and can be traced.
        """
        if counts and self._done == self._first < self._end:
            jax.profiler.start_trace(os.fspath(self._folder))
            self._is_on = self._has_begun = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def add(self, results: Any, *, counts: bool = True) -> float:
        """Counts a step; after the last traced one, waits for its results and ends.

        Returns:
            The seconds that it took to write the trace, if it did.
        """
        self._done += counts
        if self._done != self._end or not self._is_on:
            return 0.0
        jax.block_until_ready(results)
        began = time.monotonic()
        self.end()
        return time.monotonic() - began

    def end(self, why: str = "") -> None:
        """Writes what was traced, if anything is; `why` tells why it is no more."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
            number, asked = self._done - self._first, self._end - self._first
            reason = f": {why}" if number < asked else ""
            print(
                f"traced {number} of {asked} steps in {self._folder}{reason}",
                flush=True,
            )

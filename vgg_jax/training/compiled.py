"""This module compiles the training step of a run, some of it while the run trains.

A program with oneDNN's convolutions takes fewer seconds a step, but JAX cannot keep it
between processes: each start compiles it again. So the first steps of a run are taken
by the plain program, which JAX keeps, while the other one compiles. How many these are
is a matter of the run and not of its starts, so that a run that was stopped goes on to
the same bits.
"""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from vgg_jax import distributed
from vgg_jax.training.program import Program
from vgg_jax.training.steps import Batch, TrainState

# The multiply-adds of the forward passes of the steps that the plain program takes:
# some seconds of two cores, in which the compiler makes the other one.
FIRST_WORK = 2**38

Step = Callable[[TrainState, Batch, jax.Array], Any]


class CompiledStep(contextlib.AbstractContextManager["CompiledStep"]):
    """The training step of a run, which compiles as it is first called.

    Args:
        program: what is compiled.
        options: for the compiler; without any, one plain program takes all steps.
        first_steps: how many steps of the run the plain program takes, where there are
            options.
    """

    def __init__(
        self, program: Program, options: Mapping[str, bool | str], first_steps: int
    ):
        self._program = program
        self._options = dict(options)
        self._first_steps = first_steps
        self._thread = ThreadPoolExecutor(1)
        self._plain: Step | None = None
        self._final: Future[Step] | None = None

    def __call__(
        self, number: int, state: TrainState, batch: Batch, key: jax.Array
    ) -> Any:
        """Takes a step: -> (state, sums); `number` is that of the steps before it."""
        if self._final is None:
            self._compile(number)
        assert self._final is not None
        if self._plain is not None and self.is_early(number):
            return self._plain(state, batch, key)
        self._plain = None
        return self._final.result()(state, batch, key)

    def is_early(self, number: int) -> bool:
        """Returns whether this step is taken while the run's final program compiles."""
        return bool(self._options) and number < self._first_steps

    def _compile(self, number: int) -> None:
        lowered = self._program.train_step.lower(*self._program.arguments)
        if self.is_early(number):
            self._plain = lowered.compile()
        self._final = self._thread.submit(lowered.compile, self._options)
        if distributed.several():
            # One that finds a program in its cache would be first by minutes, and on
            # CPU the hosts wait for one another for 30 seconds only.
            self._final.result()
            distributed.wait_for_all()

    def __exit__(self, *error: object) -> None:
        if self._final is not None and not self._final.done():
            print("waiting for the compiler, which cannot be stopped", flush=True)
        self._thread.shutdown()

"""The first steps of a run by one program, the others by another."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vgg_jax.training.compiled import CompiledStep


class CountingProgram:
    """A program whose step says with which options it was compiled."""

    arguments = ("state", "batch", "key")

    def __init__(self) -> None:
        self.compiled: list[dict[str, str]] = []
        self.train_step = self

    def lower(self, *arguments: str) -> "CountingProgram":
        assert arguments == self.arguments
        return self

    def compile(self, options: Any = None) -> Any:
        self.compiled.append(dict(options or {}))
        return lambda state, batch, key: (state, dict(options or {}))


OPTIONS = {"flag": "on"}


@pytest.mark.parametrize(
    ("options", "start", "compiled", "taken"),
    [
        ({}, 0, [{}], [{}] * 5),
        (OPTIONS, 0, [{}, OPTIONS], [{}, {}, {}, OPTIONS, OPTIONS]),
        (OPTIONS, 2, [{}, OPTIONS], [{}, OPTIONS, OPTIONS, OPTIONS, OPTIONS]),
        (OPTIONS, 3, [OPTIONS], [OPTIONS] * 5),
    ],
)
def test_the_number_of_a_step_decides_which_program_takes_it(
    options: dict[str, str],
    start: int,
    compiled: list[dict[str, str]],
    taken: list[dict[str, str]],
) -> None:
    program: Any = CountingProgram()
    state: Any = "state"
    with CompiledStep(program, options, first_steps=3) as step:
        assert program.compiled == []  # a run that is at its end compiles nothing
        for number, expected in enumerate(taken, start):
            assert step.is_early(number) == (expected != options)
            assert step(number, state, {}, jax.random.key(0)) == (state, expected)
    assert program.compiled == compiled


def test_what_the_compiler_says_is_said_at_the_step_that_needs_it() -> None:
    class Program(CountingProgram):
        def compile(self, options: Any = None) -> Any:
            if options:
                raise MemoryError("too large")
            return super().compile()

    program: Any = Program()
    with CompiledStep(program, OPTIONS, first_steps=1) as step:
        step(0, jnp.zeros(()), {}, jax.random.key(0))  # type: ignore[arg-type]
        with pytest.raises(MemoryError, match="too large"):
            step(1, jnp.zeros(()), {}, jax.random.key(0))  # type: ignore[arg-type]

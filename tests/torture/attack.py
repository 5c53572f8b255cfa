"""What an attack is: kinds of cases, a function that runs one, and its share of time.

A case is a seed and a number. The kind of a case and everything random in it follow
from these alone, so that `NAME:NUMBER` with the seed repeats it.
"""

import dataclasses
import enum
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


class Verdict(enum.Enum):
    """How a case ended."""

    RIGHT = "as it should"
    WRONG = "otherwise"  # a traceback, another exit code, too slow; nothing is lost
    LOST = "lost"  # data are lost, or a result is wrong and nothing says so


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A verdict and, unless all is right, one line that says what was seen."""

    verdict: Verdict
    reason: str = ""


RIGHT = Outcome(Verdict.RIGHT)


def wrong(reason: str) -> Outcome:
    """Makes the outcome of a case that ended otherwise than it should."""
    return Outcome(Verdict.WRONG, reason)


def lost(reason: str) -> Outcome:
    """Makes the outcome of a case that lost data or gave a wrong result."""
    return Outcome(Verdict.LOST, reason)


@dataclasses.dataclass(frozen=True)
class Case:
    """One try of an attack.

    Args:
        attack: the attack's name.
        seed: the seed of the whole program.
        number: which of the attack's cases this is, from 0.
        kind: the name of the row of the attack's table that this case is of.
    """

    attack: str
    seed: int
    number: int
    kind: str

    @property
    def name(self) -> str:
        """What `--repeat` takes."""
        return f"{self.attack}:{self.number}"

    def rng(self) -> np.random.Generator:
        """Makes the generator of everything random in the case."""
        return np.random.default_rng([self.seed, _number(self.attack), self.number])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """A way to make the library fail.

    Args:
        name: one word, for the command line and the table.
        does: a sentence that says what is done.
        right: a sentence that says what counts as ended as it should.
        weight: its share of the time, relative to the others'.
        kinds: the table of its kinds of cases; `run` knows what the values mean.
        run: (laboratory, cases) -> the outcome of each, in their order.
        batch: how many cases `run` is given at once.
    """

    name: str
    does: str
    right: str
    weight: float
    kinds: Mapping[str, Any]
    run: Callable[[Any, Sequence[Case]], Iterator[Outcome]]
    batch: int = 1

    def case(self, seed: int, number: int) -> Case:
        """Returns a case; in order of number they go round all kinds, shuffled."""
        order = np.random.default_rng([seed, _number(self.name)])
        names = order.permutation(list(self.kinds)).tolist()
        return Case(self.name, seed, number, names[number % len(names)])


def one_by_one(
    run: Callable[[Any, Case, Any], Outcome], kinds: Mapping[str, Any]
) -> Callable[[Any, Sequence[Case]], Iterator[Outcome]]:
    """Makes the `run` of an attack from (laboratory, case, row of `kinds`)."""

    def run_all(laboratory: Any, cases: Sequence[Case]) -> Iterator[Outcome]:
        for case in cases:
            yield run(laboratory, case, kinds[case.kind])

    return run_all


def _number(name: str) -> int:
    return zlib.crc32(name.encode())

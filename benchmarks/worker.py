"""Answers requests in one of the processes that a benchmark compares."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

Steps = Callable[[int], None]  # takes so many steps, and waits for the last
# Makes what gives the answer to a request, as often as it is asked for.
Part = Callable[[], Callable[[], Any]]
Parts = Mapping[str, Part]


def timed(take: Steps, seconds: float) -> Callable[[], float]:
    """Returns a function that gives the seconds of a step.

    It takes as many steps as fill `seconds`; one compiles and one is timed before.
    """
    count = steps_that_fill(take, seconds)
    return lambda: seconds_a_step(take, count)


def steps_that_fill(take: Steps, seconds: float) -> int:
    """Returns how many steps take so long, after one that compiles and fills caches."""
    take(1)
    return max(1, round(seconds / seconds_a_step(take, 1)))


def seconds_a_step(take: Steps, count: int) -> float:
    """Returns the seconds of a step, from the time of `count` of them."""
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


class Answers:
    """Gives the answer to each request.

    One part is kept at a time: another one has all memory for itself.

    Args:
        open_parts: makes the parts by their names, at the first request.
    """

    def __init__(self, open_parts: Callable[[], Parts]):
        self._open_parts = open_parts
        self._parts: Parts | None = None
        self._name: str | None = None
        self._give: Callable[[], Any] | None = None

    def __call__(self, name: str) -> Any:
        """Returns the answer of the part of this name; it can be any that JSON has."""
        if self._parts is None:
            self._parts = self._open_parts()
        if name != self._name:
            self._name = self._give = None
            self._give = self._parts[name]()
            self._name = name
        assert self._give is not None
        try:
            return self._give()
        except Exception:
            self._name = self._give = None
            raise


def serve(
    open_parts: Callable[[], Parts], requests: Iterable[str], answers: TextIO
) -> None:
    """Answers each request, a line of JSON, with one, until there are no more.

    A request is the name of a part. A line has its "answer", or the "error" that came
    instead.
    """
    give = Answers(open_parts)
    for line in requests:
        try:
            reply = {"answer": give(json.loads(line))}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
        print(json.dumps(reply), file=answers, flush=True)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")


def main(open_parts: Callable[..., Parts]) -> None:
    """Answers the requests of stdin; the arguments of `open_parts` are on the line.

    Whatever else is printed goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arguments = json.loads(sys.argv[1])
    serve(lambda: open_parts(**arguments), sys.stdin, answers)

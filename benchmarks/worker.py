"""Times steps when told to, in one of the two processes of cpu.py."""

import json
import sys
import time
from collections.abc import Callable, Mapping

Steps = Callable[[int], None]  # takes so many steps, and waits for the last


def serve(parameters: int, parts: Mapping[str, Steps], seconds: float) -> None:
    """Answers each request, a line of JSON, with one, until there are no more.

    The first line says how many parameters the network has. A request is a name in
    `parts`; the answer is the seconds a step takes, over as many steps as fill
    `seconds`.
    """
    _answer(parameters)
    counts: dict[str, int] = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in counts:
            counts[name] = steps_that_fill(parts[name], seconds)
        _answer(seconds_a_step(parts[name], counts[name]))


def steps_that_fill(take: Steps, seconds: float) -> int:
    """Returns how many steps take so long, after one that compiles and fills caches."""
    take(1)
    return max(1, round(seconds / seconds_a_step(take, 1)))


def seconds_a_step(take: Steps, count: int) -> float:
    """Returns the seconds of a step, from the time of `count` of them."""
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def _answer(value: float) -> None:
    print(json.dumps(value), flush=True)

"""A process that times steps when told to, one of the two sides of cpu.py."""

import json
import sys
import time
from collections.abc import Callable, Mapping

Steps = Mapping[str, Callable[[int], None]]  # "forward", "train": take so many steps


def serve(parameters: int, steps: Steps, seconds: float) -> None:
    """Answer a line of JSON a request, until there are no more.

    First says how many parameters the network has. A request is a name in `steps`; the
    answer is the seconds a step takes, over as many steps as fill `seconds`.
    """
    _answer(parameters)
    counts: dict[str, int] = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in counts:
            steps[name](1)  # compiles, fills caches
            counts[name] = max(1, round(seconds / _timed(steps[name], 1)))
        _answer(_timed(steps[name], counts[name]))


def _timed(take: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def _answer(value: float) -> None:
    print(json.dumps(value), flush=True)

"""Times steps when told to, in one of the two processes of cpu.py."""

import json
import sys
import time
from collections.abc import Callable, Mapping

Steps = Mapping[str, Callable[[int], None]]  # "forward", "train": take so many steps


def serve(parameters: int, steps: Steps, seconds: float) -> None:
    """Answers each request, a line of JSON, with one, until there are no more.

    The first line says how many parameters the network has. A request is a name in
    `steps`; the answer is the seconds a step takes, over as many steps as fill
    `seconds`.
    """
    _answer(parameters)
    counts: dict[str, int] = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in counts:
            steps[name](1)  # compiles, fills caches
            counts[name] = max(1, round(seconds / _seconds_a_step(steps[name], 1)))
        _answer(_seconds_a_step(steps[name], counts[name]))


def _seconds_a_step(take: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def _answer(value: float) -> None:
    print(json.dumps(value), flush=True)

"""When to strike: each moment waits, and ends when the blow should fall."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.torture.laboratory import Whole, printed_step
from tests.torture.processes import Started

Moment = Callable[[Started, Path, Whole, np.random.Generator], None]


def _pause(started: Started, seconds: float) -> None:
    started.wait_until(lambda: False, seconds)


def any_second(
    started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
) -> None:
    """Waits for a moment of the whole time that the run takes."""
    _pause(started, float(rng.uniform(0, whole.seconds)))


def start(
    started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
) -> None:
    """Waits for a moment before the first step."""
    _pause(started, float(rng.uniform(0, whole.start_seconds)))


def step(
    started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
) -> None:
    """Waits until a step is printed, and a moment of the steps after it."""
    last = int(rng.integers(1, whole.steps))
    delay = float(rng.uniform(0, 0.1))
    started.wait_until(lambda: printed_step(started.output) >= last)
    _pause(started, delay)


def saving(
    started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
) -> None:
    """Waits until a checkpoint is being written."""
    after = int(rng.integers(0, whole.steps - 4))
    delay = float(rng.uniform(0, 0.1) * rng.integers(0, 2))

    def is_saving() -> bool:
        names = [path.name for path in (workdir / "checkpoints").glob("*tmp*")]
        steps = [name.partition(".")[0] for name in names]
        return any(one.isdecimal() and int(one) > after for one in steps)

    started.wait_until(is_saving)
    _pause(started, delay)


def validation(
    started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
) -> None:
    """Waits until the step is printed after which the run validates."""
    before = int(rng.choice(whole.validated))
    delay = float(rng.uniform(0, 0.3))
    started.wait_until(lambda: printed_step(started.output) >= before)
    _pause(started, delay)


def seconds(most: float) -> Moment:
    """Makes a moment of the first `most` seconds."""

    def moment(
        started: Started, workdir: Path, whole: Whole, rng: np.random.Generator
    ) -> None:
        _pause(started, float(rng.uniform(0, most)))

    return moment

"""Rate and time left, on a clock that the test moves."""

import time

import pytest

from vgg_jax.console import Progress, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_compilation_and_pauses_do_not_count(clock: Clock) -> None:
    progress = Progress(total=100, done=10)
    assert progress.starting and progress.time_left() == "?"
    clock.now += 50  # the first step compiles
    progress.skip(1)
    assert not progress.starting and progress.done == 11
    clock.now += 2
    assert progress.advance(10) == 5
    clock.now += 30  # a validation
    progress.resume()
    clock.now += 4
    assert progress.advance(10) == 2.5
    assert progress.done == 31
    assert progress.time_left() == "21s"  # 69 units at 20 units in 6 s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (3720, "1h02m"), (90_000 + 7200, "1d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

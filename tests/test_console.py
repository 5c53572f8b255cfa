"""What a terminal shows."""

import pytest

from vgg_jax.console import format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (3720, "1h02m"), (90_000 + 7200, "1d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

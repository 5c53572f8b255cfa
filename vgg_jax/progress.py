"""Rate and time left of long work."""

import time


class Progress:
    """Counts units of work from `done` to `total`; pauses do not count as time."""

    def __init__(self, total: int, done: int = 0):
        self.total = total
        self.done = done
        self._start = done
        self._counted = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    @property
    def starting(self) -> bool:
        """Whether nothing was counted or skipped yet."""
        return self.done == self._start

    def advance(self, units: int) -> float:
        """Count units done since the last call; returns their rate a second."""
        now = time.monotonic()
        seconds = now - self._since
        self._since = now
        self._seconds += seconds
        self._counted += units
        self.done += units
        return units / seconds if seconds > 0 else float("inf")

    def resume(self) -> None:
        """Leave out the time since the last call: a compilation, a validation."""
        self._since = time.monotonic()

    def skip(self, units: int) -> None:
        """Count units, but not the time that they took."""
        self.done += units
        self.resume()

    def time_left(self) -> str:
        """Such as "1h02m" or "45s", at the mean rate so far."""
        if not self._counted:
            return "?"
        return format_seconds(
            self._seconds / self._counted * max(0, self.total - self.done)
        )


def format_seconds(seconds: float) -> str:
    """Such as "2d03h", "1h02m", "3m05s" or "45s"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{hours}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"

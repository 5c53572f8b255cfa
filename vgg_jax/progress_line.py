"""A progress line on stderr."""

import sys
import time

from vgg_jax.progress import format_seconds

# Seconds between two lines: a terminal rewrites its line, a log file gets a new one.
ON_TERMINAL = 0.2
IN_LOG = 10.0


class ProgressLine:
    """Units done, their rate and the time left; silent when `name` is None."""

    def __init__(self, name: str | None, total: int, unit: str = "images"):
        self._name = name
        self._total = total
        self._unit = unit
        self._done = 0
        self._stream = sys.stderr
        self._rewrites = self._stream.isatty()
        self._every = ON_TERMINAL if self._rewrites else IN_LOG
        self._started = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None  # when it ended, its images

    def advance(self, units: int) -> None:
        """Count units; show the line when it is due."""
        now = time.monotonic()
        self._done += units
        if self._first is None:  # mostly compilation: says nothing about the rate
            self._first = now, self._done
        elif self._done < self._total and now - self._shown >= self._every:
            self._shown = now
            since, before = self._first
            rate = (self._done - before) / max(now - since, 1e-9)
            left = format_seconds((self._total - self._done) / rate) if rate else "?"
            digits = 0 if rate >= 10 else 2
            self._show(f"{rate:,.{digits}f} {self._unit}/s  {left} left")

    def close(self) -> None:
        """The last line: the whole time, compilation included."""
        seconds = time.monotonic() - self._started
        self._show(f"{format_seconds(seconds)}")
        if self._name is not None and self._rewrites:
            print(file=self._stream)

    def _show(self, text: str) -> None:
        if self._name is None:
            return
        line = f"{self._name}  {self._done:,}/{self._total:,} {self._unit}  {text}"
        # Back to the start of the line, and clear to its end.
        start, end = ("\r", "\x1b[K") if self._rewrites else ("", "\n")
        print(f"{start}{line}", end=end, file=self._stream, flush=True)

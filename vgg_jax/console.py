"""This module has what terminals show: progress, aligned tables, nearest names."""

import difflib
import itertools
import sys
from collections.abc import Iterable, Sequence

from etils.epath import Path
from tqdm import tqdm

# Seconds between two updates: a terminal rewrites its line, a log file gets a new one.
ON_TERMINAL = 0.2
IN_LOG = 10.0


class _LogStream:
    """A stream to stderr for a progress bar in a log file: each update is a line."""

    def write(self, text: str) -> None:
        """Prints the bar's text without what moves a terminal's cursor."""
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Does nothing: lines are flushed as they are printed."""


def progress_bar(
    description: str | None,
    total: int,
    *,
    done: int = 0,
    unit: str = "images",
    delay: float = 0.0,
) -> tqdm:
    """Makes a progress bar on stderr with the rate and the time left.

    Args:
        description: the name of the work; with None nothing is shown.
        total: units of work in all.
        done: units that need not be done, because an earlier call has done them.
        unit: what is counted, in the plural.
        delay: seconds before it is shown at all.

    Returns:
        The bar, a context manager; `bar.update(n)` counts n more units.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=f" {unit}",
        file=sys.stderr if on_terminal else _LogStream(),
        disable=description is None,
        delay=delay,
        mininterval=ON_TERMINAL if on_terminal else IN_LOG,
        bar_format="{desc}  {n:,}/{total:,}{unit}  "
        + ("|{bar}|  " if on_terminal else "")
        + "{rate_fmt}  {remaining} left",
        dynamic_ncols=True,
    )


def format_seconds(seconds: float) -> str:
    """Writes a duration as "2d03h", "1h02m", "3m05s" or "45s"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{hours}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"


def format_columns(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
) -> str:
    """Aligns columns of text: the first to the left, the others to the right.

    A rule follows the headings, and another one comes before the total if there is any.
    """
    lines = [headings, *cells, *([] if total is None else [total])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(texts: Sequence[str]) -> str:
        first, *rest = (
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line(headings), rule, *map(line, cells)]
    return "\n".join(body if total is None else [*body, rule, line(total)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ends an error message with the nearest known names, else with all of them.

    Upper and lower case count as the same; a name that differs in them alone is meant.
    """
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    if name.lower() in by_lower:
        near = [name.lower()]
    if near:
        return (
            "did you mean " + " or ".join(repr(by_lower[word]) for word in near) + "?"
        )
    return "known are " + ", ".join(by_lower.values())


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names folders or files, with as many parents as tell them apart.

    Raises:
        ValueError: the same path twice.
    """
    if len(set(paths)) < len(paths):
        raise ValueError("expected different paths, got the same one twice")
    for parts in itertools.count(1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names

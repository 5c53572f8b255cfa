"""Suggestions for a name that is not there, and short names of paths."""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return "known are " + ", ".join(known)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names of folders or files, with as many parents as tell them apart.

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

"""Suggestions for a name that is not there."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return "known are " + ", ".join(known)

"""This module ends a process at once, from any of its threads."""

import contextlib
import os
import sys
from typing import NoReturn


def end_process(code: int, line: str = "") -> NoReturn:
    """Ends this process with a line on stderr, whether or not anybody still reads it.

    A write to a pipe whose reader is gone raises; in a thread nobody would notice, and
    the process would stay.

    Args:
        code: the exit code.
        line: the last line on stderr; none by default.
    """
    try:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode() if line else b"")
    finally:
        os._exit(code)

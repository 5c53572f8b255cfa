"""This module maps a file of weights into memory and says what is wrong with it.

The arrays of a mapped file are parts of it: its bytes are read when the values are, and
a size that a damaged file declares takes no memory.
"""

import contextlib
import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Iterator

import numpy as np
from etils.epath import Path

from vgg_jax.files import is_in_bucket
from vgg_jax.weights.contents import Refusal

MOST_AXES = 8  # of an array
LONGEST_MESSAGE = 300  # characters; names in a file can be of any length


def map_file(path: Path) -> mmap.mmap | io.BytesIO:
    """Opens a file to be read and sliced; one in a bucket is copied into memory."""
    if is_in_bucket(path):
        return io.BytesIO(path.read_bytes())
    with open(os.fspath(path), "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def view_of(file: mmap.mmap | io.BytesIO) -> memoryview:
    """Returns the bytes of an opened file without copying them."""
    return file.getbuffer() if isinstance(file, io.BytesIO) else memoryview(file)


def map_array(
    view: memoryview, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Returns an array that lies in a file.

    Args:
        view: the bytes of the file.
        start: the place of the array's first byte.
        shape: the array's shape, of any numbers that the file says.
        dtype: the type of its values.

    Raises:
        ValueError: the file does not have as many bytes there.
    """
    if len(shape) > MOST_AXES or min(shape, default=0) < 0:
        raise Refusal(
            f"expected a shape of at most {MOST_AXES} numbers from 0, got {shape}"
        )
    size = math.prod((dtype.itemsize, *shape))
    if not 0 <= start <= start + size <= len(view):
        raise Refusal(
            f"expected {size:,} bytes of an array at byte {start:,}, and the file ends "
            f"at byte {len(view):,}; it is damaged or not whole: get it anew"
        )
    return np.frombuffer(view[start : start + size], dtype).reshape(shape)


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Makes any error of reading a file one line that begins with its path.

    Raises:
        ValueError: something in the block did not find what it expected.
    """
    try:
        yield
    except (
        *(ArithmeticError, AssertionError, EOFError, LookupError, RecursionError),
        *(NotImplementedError, struct.error, TypeError, ValueError, zipfile.BadZipFile),
    ) as error:
        message = " ".join(str(error).split())
        message = "".join(c if c.isprintable() else "?" for c in message)
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}..."
        if not isinstance(error, Refusal):
            message = (
                "the file is damaged or not whole: get it anew "
                f"({type(error).__name__}: {message})"
            )
        raise ValueError(f"{path}: {message}") from error

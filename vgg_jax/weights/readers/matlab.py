"""This module reads MATLAB's files of version 5, as `save -v6` and `save -v7` write.

Arrays are parts of the file or of what was decompressed of it: sizes that a damaged
file declares take no memory.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vgg_jax.weights.readers.mapped import Refusal

# Arrays of numbers, in the smallest type that holds whole ones; texts, lists for
# cells, dictionaries for structures (lists of them where there are several), and None
# for what weights are not kept in.
Value = np.ndarray | str | list["Value"] | dict[str, "Value"] | None

# Weights hardly compress: VGG-16's to 93 %.
MOST_EXPANSION = 8
DEEPEST = 20

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_NUMBERS = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4"), 1))
_NUMBERS |= {9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
# Classes of arrays; those from double to uint64 hold numbers.
_CELL, _STRUCT, _CHAR, _DOUBLE, _UINT64 = 1, 2, 4, 6, 15


class Element(NamedTuple):
    """A part of a file: its kind and its bytes."""

    kind: int
    data: memoryview


def load(view: memoryview) -> dict[str, Value]:
    """Reads the variables of a file.

    Raises:
        ValueError: the file is damaged; damage can raise `LookupError` or
            `struct.error` too.
    """
    order = "<" if bytes(view[126:128]) == b"IM" else ">"
    left = MOST_EXPANSION * len(view)
    variables = {}
    for element in _elements(view[_HEADER:], order):
        if element.kind == _COMPRESSED:
            data = _decompress(element.data, left + 1)
            if len(data) > left:
                raise Refusal(
                    f"expected that it expands to {MOST_EXPANSION} times its size at "
                    "most; the file is damaged or does not hold weights"
                )
            left -= len(data)
            (element,) = _elements(memoryview(data), order)
        if element.kind != _MATRIX:
            raise Refusal(f"expected a variable, got an element {element.kind}")
        name, value = _array(element.data, order, depth=0)
        variables[name] = value
    return variables


def _decompress(data: memoryview, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise Refusal(f"the file is damaged ({error})") from error


def _elements(view: memoryview, order: str) -> Iterator[Element]:
    """Divides bytes into elements; the bytes of each begin at a multiple of eight."""
    place = 0
    while place < len(view):
        kind, size = struct.unpack_from(f"{order}II", view, place)
        start = place + 8
        if kind >> 16:  # up to four bytes stand beside their size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
            end = place
        else:
            end = len(view)
            place = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > end:
            raise Refusal(
                f"expected {size:,} bytes of an array, and {end - start:,} are left; "
                "the file is damaged or not whole: get it anew"
            )
        yield Element(kind, view[start : start + size])


def _array(view: memoryview, order: str, depth: int) -> tuple[str, Value]:
    """Reads an array: its name, which those within others lack, and its value."""
    if not view:
        return "", None
    if depth > DEEPEST:
        raise Refusal(f"expected at most {DEEPEST} arrays within each other")
    parts = _elements(view, order)
    (flags,) = struct.unpack_from(f"{order}I", _next(parts).data)
    shape = tuple(_numbers(_next(parts), order).tolist())
    if min(shape, default=-1) < 0 or len(shape) > 32:
        raise Refusal(f"expected an array's shape, got {shape}")
    name = bytes(_next(parts).data).decode()
    kind = flags & 0xFF
    if kind == _CELL:
        return name, _values(parts, math.prod(shape), order, depth)
    if kind == _STRUCT:
        return name, _structures(parts, math.prod(shape), order, depth)
    if kind == _CHAR:
        return name, _text(_next(parts), order)
    if _DOUBLE <= kind <= _UINT64:
        numbers = _numbers(_next(parts), order)
        if math.prod(shape) != len(numbers):
            raise Refusal(
                f"expected {math.prod(shape):,} values of an array of shape {shape}, "
                f"got {len(numbers):,}; the file is damaged"
            )
        return name, numbers.reshape(shape, order="F")
    return name, None


def _next(parts: Iterator[Element]) -> Element:
    for part in parts:
        return part
    raise Refusal("expected more of an array; the file is damaged")


def _values(
    parts: Iterator[Element], count: int, order: str, depth: int
) -> list[Value]:
    """Reads arrays within an array, as many as its shape says."""
    values = [_array(part.data, order, depth + 1)[1] for part in parts]
    if len(values) != count:
        raise Refusal(
            f"expected {count:,} arrays within an array, got {len(values):,}; the file "
            "is damaged"
        )
    return values


def _structures(parts: Iterator[Element], count: int, order: str, depth: int) -> Value:
    """Reads structures, whose fields follow one another: all of one, then the next."""
    length = int(_numbers(_next(parts), order)[0])
    text = bytes(_next(parts).data)
    if length < 1:
        raise Refusal(f"expected names of one letter or more, got {length}")
    fields = [
        text[i : i + length].split(b"\0")[0].decode()
        for i in range(0, len(text), length)
    ]
    values = _values(parts, count * len(fields), order, depth)
    if not fields:
        return {}
    structures: list[Value] = [
        dict(zip(fields, values[i : i + len(fields)], strict=True))
        for i in range(0, len(values), len(fields))
    ]
    return structures[0] if len(structures) == 1 else structures


def _numbers(element: Element, order: str) -> np.ndarray:
    dtype = np.dtype(order + _NUMBERS[element.kind])
    return np.frombuffer(element.data, dtype).astype(
        dtype.newbyteorder("="), copy=False
    )


def _text(element: Element, order: str) -> str:
    encoding = _ENCODINGS[element.kind]
    if encoding == "utf-16":
        encoding += "-le" if order == "<" else "-be"
    return bytes(element.data).decode(encoding)

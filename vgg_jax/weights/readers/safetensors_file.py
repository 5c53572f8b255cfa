"""This module reads safetensors files: a header of JSON, and the arrays behind it.

It does so without the library of that name, which copies all arrays into memory and
needs a file on a disk; here they are mapped.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import Contents, Refusal, axes_of, group
from vgg_jax.weights.readers.mapped import (
    map_array,
    map_file,
    naming_damage,
    view_of,
)
from vgg_jax.weights.readers.metadata import parse_class_names, validate_metadata
from vgg_jax.weights.readers.pickled import are_sizes

# Bytes of the header; that of a VGG has some thousand. JSON takes 40 times as much.
LARGEST_HEADER = 2**20

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class _Entry(NamedTuple):
    """What the header says of an array; its place is relative to the header's end."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: Path) -> Contents:
    """Reads a safetensors file, of PyTorch's names or of this library's.

    Kernels called `weight`, as in PyTorch, are [out, in, height, width]; those called
    `kernel`, as here, are [height, width, in, out]. The metadata "axes" (`oihw` or
    `hwio`) says otherwise. The metadata "class_names" is a JSON list of text, and
    "normalization" a JSON object with the arguments of `Normalization`.

    Raises:
        ValueError: the file is damaged; the message begins with the path.
    """
    with naming_damage(path):
        view = view_of(map_file(path))
        header, start = _header(view)
        metadata = validate_metadata(header.pop("__metadata__", {}))
        entries = {name: _entry(name, value) for name, value in header.items()}
        _validate_places(entries.values(), len(view) - start)
        arrays = {
            name: map_array(view, start + entry.begin, entry.shape, entry.dtype)
            for name, entry in entries.items()
        }
        layers, others = group(arrays)
        return Contents(
            format="safetensors",
            layers=layers,
            axes=metadata.get("axes") or axes_of(arrays),
            others=others,
            class_names=parse_class_names(metadata.get("class_names")),
            metadata=metadata,
        )


def _header(view: memoryview) -> tuple[dict[str, object], int]:
    """Returns the header, and where the bytes behind it begin."""
    (size,) = struct.unpack_from("<Q", view)
    start = 8 + size
    if size > LARGEST_HEADER or start > len(view):
        raise Refusal(
            f"expected a header of at most {LARGEST_HEADER:,} bytes, and the file has "
            f"one of {size:,} in {len(view):,}; it is damaged or not whole: get it anew"
        )
    header = json.loads(bytes(view[8:start]))
    if not isinstance(header, dict):
        raise Refusal("expected a JSON object as header; the file is damaged")
    return header, start


def _entry(name: str, value: object) -> _Entry:
    """Checks what the header says of an array."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": list(place)}:
            if dtype not in DTYPES:
                raise Refusal(
                    f"{name!r:.100} has values of type {dtype!r:.20}; expected one of "
                    + ", ".join(DTYPES)
                )
            extents, ends = tuple(shape), tuple(place)
            if are_sizes(extents) and are_sizes(ends) and len(ends) == 2:
                entry = _Entry(DTYPES[dtype], extents, *ends)
                if math.prod((entry.dtype.itemsize, *extents)) == ends[1] - ends[0]:
                    return entry
    raise Refusal(
        f"expected type, shape and place of {name!r:.100}, which go together, in the "
        "header; the file is damaged"
    )


def _validate_places(entries: Iterable[_Entry], size: int) -> None:
    """Checks that arrays do not overlap and that nothing lies between them."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise Refusal("arrays overlap or have gaps; the file is damaged")
        end = entry.end
    if end != size:
        raise Refusal(
            f"expected {end:,} bytes of arrays, got {size:,}; the file is damaged"
        )

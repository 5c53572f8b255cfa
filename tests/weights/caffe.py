"""Writes `.caffemodel` files of all generations, after caffe.proto."""

import struct
from collections.abc import Sequence

import numpy as np

CONVOLUTION, INNER_PRODUCT, RELU = 4, 14, 18  # V1LayerParameter.LayerType


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(encoded) + bytes([number])


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a message: a number, a text or another message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(
    array: np.ndarray,
    shape: Sequence[int] | None = None,
    *,
    is_old: bool = False,
    is_packed: bool = True,
    is_double: bool = False,
) -> bytes:
    """A BlobProto.

    Args:
        array: the values.
        shape: another shape than the array's.
        is_old: with the four fields that were a shape once.
        is_packed: with the values in one piece, not each with a key.
        is_double: with the values in double_data.
    """
    shape = array.shape if shape is None else shape
    if is_old:
        sizes = (*(1,) * (4 - len(shape)), *shape)
        encoded = b"".join(field(i, size) for i, size in enumerate(sizes, 1))
    elif is_packed:
        encoded = field(7, field(1, b"".join(map(varint, shape))))
    else:
        encoded = field(7, b"".join(field(1, size) for size in shape))
    number, letter = (8, "d") if is_double else (5, "f")
    values = [struct.pack(f"<{letter}", value) for value in array.ravel().tolist()]
    if is_packed:
        return encoded + field(number, b"".join(values))
    key = varint(number << 3 | (1 if is_double else 5))
    return encoded + b"".join(key + value for value in values)


def layer_v0(name: str, type: str, blobs: Sequence[bytes]) -> bytes:
    own = field(1, name) + field(2, type) + field(3, 96)
    own += b"".join(field(50, b) for b in blobs) + field(51, 1)
    return field(2, field(1, own) + field(2, "data") + field(3, name))


def layer_v1(name: str, type: int, blobs: Sequence[bytes]) -> bytes:
    own = field(2, "data") + field(3, name) + field(4, name) + field(5, type)
    return field(2, own + b"".join(field(6, b) for b in blobs))


def layer(
    name: str,
    type: str,
    blobs: Sequence[bytes],
    bottom: str = "data",
    top: str | None = None,
) -> bytes:
    own = field(1, name) + field(2, type) + field(3, bottom) + field(4, top or name)
    return field(100, own + b"".join(field(7, b) for b in blobs) + field(10, 1))

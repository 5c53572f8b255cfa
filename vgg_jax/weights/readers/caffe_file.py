"""This module reads the networks that Caffe saves, of all its generations.

The files are protocol buffers. Their few fields are read here without that library,
which would copy half a gigabyte of weights more than once.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import OIHW, Contents, Layers
from vgg_jax.weights.readers.mapped import (
    Refusal,
    map_file,
    naming_damage,
    view_of,
)

Message = memoryview | bytearray


class Record(NamedTuple):
    """A layer as it stands in the file.

    Args:
        name: the layer's name.
        type: what the layer is, by its name in Caffe today.
        bottom: the map that it takes.
        top: the map that it makes.
        blobs: its arrays.
    """

    name: str
    type: str
    bottom: str
    top: str
    blobs: list[np.ndarray]


class Generation(NamedTuple):
    """The numbers of a layer's fields."""

    name: int
    type: int
    bottom: int
    top: int
    blobs: int


# Of caffe.proto: V0LayerParameter (whose maps are named outside of it),
# V1LayerParameter and LayerParameter.
V0 = Generation(name=1, type=2, bottom=-1, top=-1, blobs=50)
V1 = Generation(name=4, type=5, bottom=2, top=3, blobs=6)
V2 = Generation(name=1, type=2, bottom=3, top=4, blobs=7)
_TYPES: dict[int | str, str] = {
    4: "Convolution",
    14: "InnerProduct",
    "conv": "Convolution",
    "innerproduct": "InnerProduct",
}
# The fields of BlobProto.
_OLD_SHAPE, _DATA, _SHAPE, _DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8


def read(path: Path) -> Contents:
    """Reads a `.caffemodel`.

    The layers BatchNorm and Scale, which Caffe needs both for batch normalization, are
    one layer with the name of the first.

    Raises:
        ValueError: the file is damaged, or no network of Caffe.
    """
    with naming_damage(path):
        layers: Layers = {}
        others = []
        normalized: dict[str, str] = {}  # the map of a BatchNorm -> its name
        for record in _records(view_of(map_file(path))):
            owner = normalized.pop(record.bottom, None)
            variables = _variables(record)
            if record.type == "BatchNorm":
                normalized[record.top] = record.name
            if record.type == "Scale" and owner is not None:
                layers[owner] |= variables
            elif variables and record.type != "Scale":
                layers[record.name] = variables
            elif record.blobs:
                others.append(f"{record.name} ({record.type})")
        if not layers:
            raise Refusal("expected a network of Caffe, got no weights of one")
    return Contents(format="caffe", layers=layers, axes=OIHW, others=tuple(others))


def _variables(record: Record) -> dict[str, np.ndarray]:
    """Names a layer's arrays; those of an unknown type have no names."""
    blobs = record.blobs
    vectors = [blob.reshape(-1) for blob in blobs]
    if record.type == "InnerProduct" and blobs:
        # Once all blobs had four axes, these [1, 1, out, in].
        *ones, outputs, inputs = blobs[0].shape
        if math.prod(ones) != 1:
            raise Refusal(
                f"expected a matrix in {record.name}, got shape {blobs[0].shape}"
            )
        kernel = blobs[0].reshape(outputs, inputs)
        return dict(zip(("kernel", "bias"), (kernel, *vectors[1:]), strict=False))
    if record.type == "Convolution":
        arrays = (*blobs[:1], *vectors[1:])
        return dict(zip(("kernel", "bias"), arrays, strict=False))
    if record.type == "Scale":
        return dict(zip(("scale", "bias"), vectors, strict=False))
    if record.type == "BatchNorm" and blobs:
        # Sums over batches, and what they are to be divided by.
        mean, variance, (count,) = vectors
        factor = np.float32(1 / count if count else 0)
        return {"mean": mean * factor, "var": variance * factor}
    return {}


def _records(network: Message) -> Iterator[Record]:
    for number, value in _fields(network):
        if number == 1 and isinstance(value, int):
            raise Refusal(
                "expected the weights of a network, got an image as Caffe keeps the "
                "mean of its data (.binaryproto)"
            )
        if number == 100:
            yield _record(_message(value), V2)
        elif number == 2:
            fields = dict(_fields(_message(value)))
            if 1 in fields:
                yield _record(_message(fields[1]), V0)
            else:
                yield _record(_message(value), V1)


def _record(layer: Message, generation: Generation) -> Record:
    fields: dict[int, int | Message] = {}
    blobs = []
    for number, value in _fields(layer):
        if number == generation.blobs:
            blobs.append(_blob(_message(value)))
        else:
            fields.setdefault(number, value)
    texts = [
        _text(fields.get(number, bytearray()))
        for number in (generation.name, generation.bottom, generation.top)
    ]
    name, bottom, top = texts
    kind = fields.get(generation.type, bytearray())
    type = kind if isinstance(kind, int) else _text(kind)
    return Record(name, _TYPES.get(type, str(type)), bottom, top, blobs)


def _blob(message: Message) -> np.ndarray:
    """Reads a BlobProto, whose values may lie in one piece or one by one."""
    old_shape = [1, 1, 1, 1]
    shape: list[int] | None = None
    data: Message = bytearray()
    dtype = np.dtype("<f4")
    for number, value in _fields(message):
        if number in _OLD_SHAPE:
            old_shape[number - 1] = cast(int, value)
        elif number == _SHAPE:
            shape = _dimensions(_message(value))
        elif number in (_DATA, _DOUBLE_DATA):
            dtype = np.dtype("<f4" if number == _DATA else "<f8")
            if not data:
                data = _message(value)
                continue
            if not isinstance(data, bytearray):
                data = bytearray(data)
            data += _message(value)
    shape = old_shape if shape is None else shape
    if min(shape, default=1) < 1 or len(shape) > 4:
        raise Refusal(f"expected a shape of up to four sizes above 0, got {shape}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Refusal(
            f"expected {math.prod(shape):,} values of an array of shape {shape}, and "
            f"the file has {len(data) // dtype.itemsize:,} there; it is damaged or not "
            "whole: get it anew"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _dimensions(shape: Message) -> list[int]:
    """Reads a BlobShape, whose numbers may lie in one piece or one by one."""
    sizes = []
    for number, value in _fields(shape):
        if number == 1 and isinstance(value, int):
            sizes.append(value)
        elif number == 1:
            place = 0
            while place < len(_message(value)):
                size, place = _varint(_message(value), place)
                sizes.append(size)
    return sizes


def _fields(message: Message) -> Iterator[tuple[int, int | Message]]:
    """Returns the numbers and the values of a message's fields.

    Raises:
        ValueError: this is no message; a cut one can raise `IndexError` too.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise Refusal(
                f"expected a network of Caffe, got a field of the unknown kind {kind}; "
                "the file is damaged or of another format"
            )
        if place + length > len(message):
            raise Refusal(
                f"expected {length:,} bytes of a field, and {len(message) - place:,} "
                "are left; the file is damaged or not whole: get it anew"
            )
        yield number, message[place : place + length]
        place += length


def _varint(message: Message, place: int) -> tuple[int, int]:
    """Reads a number of seven bits a byte, and says where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise Refusal("expected a number of at most ten bytes; the file is damaged")


def _message(value: int | Message) -> Message:
    if isinstance(value, int):
        raise Refusal(
            f"expected a message, got the number {value}; the file is damaged or of "
            "another format"
        )
    return value


def _text(value: int | Message) -> str:
    return bytes(_message(value)).decode()

"""This module knows the formats of weights by the first bytes of a file."""

import importlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, cast

from etils.epath import Path

from vgg_jax.files import parse_path
from vgg_jax.weights.contents import Contents

HEAD = 1024  # bytes of a file that tell its format


class Format(NamedTuple):
    """A kind of file.

    Args:
        recognizes: says whether a file is of this kind, by its first `HEAD` bytes.
        reader: the module of `vgg_jax.weights.readers` whose `read(path)` reads it.
        extra: the requirements file that installs what the reader needs, or None.
    """

    recognizes: Callable[[bytes], bool]
    reader: str
    extra: str | None


def _is_torch(head: bytes) -> bool:
    """Recognizes the zip file of PyTorch, its older stream, and its oldest tar file."""
    stream = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the number with which it begins
    return head[:4] == b"PK\3\4" or stream in head[:32] or head[257:262] == b"ustar"


def _is_keras(head: bytes) -> bool:
    """Recognizes HDF5, and the archive of Keras 3 by the first file in it."""
    names = (b"metadata.json", b"config.json", b"model.weights.h5")
    is_archive = head[:4] == b"PK\3\4" and head[30:].startswith(names)
    return is_archive or head.startswith(b"\x89HDF\r\n\x1a\n")


def _is_pickle(head: bytes) -> bool:
    """Recognizes pickles of the protocols 2 to 5, which begin with the protocol."""
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _is_caffe(head: bytes) -> bool:
    """Recognizes a network by its first field, its name or a layer, or a mean image."""
    return head.startswith((b"\n", b"\x12", b"\xa2\x06", b"\x08\x01\x10"))


FORMATS: dict[str, Format] = {
    # Before that of PyTorch, which takes any other zip file.
    "keras": Format(_is_keras, "keras_file", "requirements-weights.txt"),
    "torch": Format(_is_torch, "torch_file", None),
    "safetensors": Format(lambda head: head[6:9] == b"\0\0{", "safetensors_file", None),
    "pickle": Format(_is_pickle, "pickle_file", None),
    "matconvnet": Format(
        lambda head: head.startswith((b"MATLAB 5.0", b"MATLAB 7.3")),
        "matconvnet_file",
        None,
    ),
    # Protocol buffers have no mark: this is the last, as it takes the most files.
    "caffe": Format(_is_caffe, "caffe_file", None),
}


def read(name: str) -> Contents:
    """Reads a file of weights of any format.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a library that the format needs is missing; the message says which.
        ValueError: the format is not known, or the file is damaged.
    """
    path = parse_path(name)
    with path.open("rb") as file:
        head = cast(BinaryIO, file).read(HEAD)
    for format in FORMATS.values():
        if format.recognizes(head):
            return _reader(format)(path)
    raise ValueError(
        f"{path}: expected a file of weights ({', '.join(FORMATS)}), got one that "
        f"begins with {head[:8]!r}"
    )


def _reader(format: Format) -> Callable[[Path], Contents]:
    """Imports the module that reads a format."""
    try:
        module = importlib.import_module(f"vgg_jax.weights.readers.{format.reader}")
    except ImportError as error:
        if format.extra is None:
            raise
        raise ImportError(
            f"reading this file needs {error.name}: pip install -r {format.extra}"
        ) from error
    reader: Callable[[Path], Contents] = module.read
    return reader

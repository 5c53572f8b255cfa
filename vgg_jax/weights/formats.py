"""This module knows the formats of weights by the first bytes of a file."""

import importlib
import re
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, cast

from etils.epath import Path

from vgg_jax.files import parse_path
from vgg_jax.weights.contents import Contents

HEAD = 1024  # bytes of a file that tell its format


# The first field of a Caffe network: its name, a layer of either generation, or what a
# mean image begins with.
CAFFE = rb"\n[\x00-\x7f]|\x12|\xa2\x06|\x08\x01\x10"


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


FORMATS: dict[str, Format] = {
    "keras": Format(
        lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"),
        "keras_file",
        "requirements-weights.txt",
    ),
    "matconvnet": Format(
        lambda head: head.startswith((b"MATLAB 5.0", b"MATLAB 7.3")),
        "matconvnet_file",
        None,
    ),
    # Protocol buffers have no mark: this is the last, as it takes the most files.
    "caffe": Format(lambda head: re.match(CAFFE, head) is not None, "caffe_file", None),
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

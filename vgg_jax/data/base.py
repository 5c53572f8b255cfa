"""This module says what a data set is, and splits validation from it."""

import hashlib
import os
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np
from etils import epath

from vgg_jax.config import MAX_PIXELS

# Bytes of a picture's file: 16 bits for each of four channels, without compression.
MAX_BYTES = 8 * MAX_PIXELS


class CorruptImage(ValueError):
    """An image that cannot be read or decoded; the message names it."""


class Example(TypedDict):
    """One picture as it lies on disk."""

    image: bytes  # an encoded JPEG or PNG
    label: int
    name: str  # for messages: says which file or record it is
    # Where the object is: center, width and height relative to the image, as
    # `vgg_jax.boxes` has them; upright, as the image is decoded.
    box: NotRequired[tuple[float, float, float, float]]


class Source(Protocol):
    """Random access to the examples of one split; picklable, for worker processes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example:
        """Reads an example; raises CorruptImage where its file is damaged."""
        ...


SAMPLE = 32  # images that are looked at to tell one set from another


def sample_digest(source: Source) -> str:
    """Returns a digest of `SAMPLE` images of a source and of their labels.

    A picture that was changed in place is noticed only if it is one of these. One that
    cannot be read counts as empty: whoever needs it says so.
    """
    digest = hashlib.blake2b(digest_size=16)
    for i in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))):
        try:
            example = source[int(i)]
        except CorruptImage:
            digest.update(b"corrupt ")
            continue
        digest.update(f"{example['label']} {len(example['image'])} ".encode())
        digest.update(example["image"])
    return digest.hexdigest()


def name_of(source: Source, index: int) -> str:
    """Returns an example's name; of an unreadable one its number and the reason."""
    try:
        return source[index]["name"]
    except CorruptImage as error:
        return f"number {index} ({error})"


def read_picture(path: Path | epath.Path) -> bytes:
    """Reads the file of a picture.

    Raises:
        CorruptImage: it is larger than any picture.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > MAX_BYTES:
            raise CorruptImage(
                f"cannot use {path}: expected a picture of at most {MAX_BYTES:,} "
                f"bytes, found a file of {size:,}"
            )
        file.seek(0)
        data = file.read()
    assert isinstance(data, bytes)
    return data


class Subset:
    """The examples of another source that `indices` names, in their order."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source = source
        self._indices = indices

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return self._source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]


def split_validation(source: Source, fraction: float) -> tuple[Subset, Subset]:
    """Splits a source in two, the second part with `fraction` of the examples.

    One fixed permutation, the same for every run and seed: a resumed or repeated run
    must never train on what another one validated with. Classes come out about as
    balanced as in the whole.

    Raises:
        ValueError: one of the parts would be empty.
    """
    size = len(source)
    count = round(size * fraction)
    if not 0 < count < size:
        raise ValueError(
            f"holding out {fraction} of {size} examples leaves {size - count} to train "
            f"on and {count} to validate with; change validation_fraction"
        )
    # The legacy generator, because numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(size)
    train, validation = order[count:], order[:count]
    return Subset(source, np.sort(train)), Subset(source, np.sort(validation))


def hash_fraction(purpose: str, name: str) -> float:
    """Gives a number in [0, 1) that depends on the two strings alone.

    A split has the files with a small number, so adding a file moves no other.
    """
    digest = hashlib.blake2b(os.fsencode(f"{purpose}/{name}"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

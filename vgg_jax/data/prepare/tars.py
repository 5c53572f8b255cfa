"""The pictures in ImageNet's two tar files, found by their headers alone."""

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Member(NamedTuple):
    """One picture in a tar file."""

    name: str  # such as n01440764_10026.JPEG
    label: int
    offset: int  # of its first byte in the file
    size: int


def train_members(
    path: Path, wnids: Sequence[str], *, partial: bool, advance: Callable[[int], None]
) -> list[Member]:
    """A tar file of tar files, WNID.tar, of pictures WNID_NUMBER.JPEG.

    `partial` accepts some of the WNIDs; `advance` is told of every class read.

    Raises:
        ValueError: another structure, truncated, or classes missing.
    """
    labels = {f"{wnid}.tar": label for label, wnid in enumerate(wnids)}
    with open(path, "rb") as file:
        classes = list(_headers(path, file, 0, path.stat().st_size))
        _expect_names(path, [c.name for c in classes], set(labels), partial)
        members = []
        for inner in classes:
            wnid = inner.name.removesuffix(".tar")
            pattern = re.compile(rf"{wnid}_\d+\.JPEG")
            end = inner.offset_data + inner.size
            for header in _headers(path, file, inner.offset_data, end):
                if not pattern.fullmatch(header.name):
                    raise ValueError(
                        f"expected pictures {wnid}_NUMBER.JPEG in {inner.name} of "
                        f"{path}, found {header.name!r}"
                    )
                members.append(_member(header, labels[inner.name]))
            advance(1)
    return members


def validation_members(
    path: Path, labels: Sequence[int], *, partial: bool
) -> list[Member]:
    """A flat tar file of pictures ILSVRC2012_val_00000001.JPEG and so on.

    `labels` are in the order of the numbers. `partial` accepts some of the pictures.

    Raises:
        ValueError: another structure, truncated, or pictures missing.
    """
    numbers = {
        f"ILSVRC2012_val_{number:08}.JPEG": number
        for number in range(1, len(labels) + 1)
    }
    with open(path, "rb") as file:
        headers = list(_headers(path, file, 0, path.stat().st_size))
    _expect_names(path, [header.name for header in headers], set(numbers), partial)
    return [_member(header, labels[numbers[header.name] - 1]) for header in headers]


def _headers(
    path: Path, file: BinaryIO, start: int, end: int
) -> Iterator[tarfile.TarInfo]:
    """What a tar file from byte `start` to `end` of the open file holds."""
    try:
        file.seek(start)
        # TarFile counts offsets from the start of `file`, wherever it begins to read.
        with tarfile.TarFile(fileobj=file, mode="r") as archive:
            for header in archive:
                if header.offset_data + header.size > end:
                    raise tarfile.ReadError(f"{header.name} is cut off")
                yield header
    except tarfile.ReadError as error:
        raise ValueError(
            f"{path} is not a whole tar file ({error}); download it again"
        ) from error


def _expect_names(
    path: Path, found: Sequence[str], expected: set[str], partial: bool
) -> None:
    strange = sorted(set(found) - expected)
    missing = sorted(expected - set(found))
    if strange or not found or len(found) != len(set(found)):
        raise ValueError(
            f"expected {min(expected)} to {max(expected)} in {path}, each once; found "
            f"{len(found)} members"
            + (f", among them {strange[0]}" if strange else "")
            + ": it is not the official file"
        )
    if missing and not partial:
        raise ValueError(
            f"{path} has {len(found):,} of {len(expected):,} members: no {missing[0]}; "
            "download it again, or add --partial to go on with what is there"
        )


def _member(header: tarfile.TarInfo, label: int) -> Member:
    return Member(header.name, label, header.offset_data, header.size)

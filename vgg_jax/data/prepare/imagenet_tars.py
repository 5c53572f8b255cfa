"""This module reads ILSVRC-2012 from its two tar files."""

import contextlib
import importlib.resources
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import cv2

from vgg_jax.console import progress_bar
from vgg_jax.data import transforms
from vgg_jax.data.headers import jpeg_header
from vgg_jax.data.prepare.writer import Contents, Member, Preparation

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
TAR_BYTES = {"train": 147_897_477_120, "validation": 6_744_924_160}
IMAGES = {"train": 1_281_167, "validation": 50_000}


@contextlib.contextmanager
def open_imagenet(folder: Path | None, partial: bool) -> Iterator[Contents]:
    """Gives the pictures of the tar files, whose headers are all read first.

    Raises:
        FileNotFoundError: a tar file is missing.
        ValueError: a tar file is not the official one or not whole.
    """
    assert folder is not None  # nothing can be fetched
    validate_tars(folder, partial)
    members = read_members(folder, partial)
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(open(folder / name, "rb")).fileno()
            for split, name in TARS.items()
        }
        yield Contents(
            class_names=wnids(),
            members=members,
            read=lambda split, member: rgb_jpeg(
                os.pread(files[split], member.size, member.offset), member.name
            ),
            encoding="jpeg",
            name_feature="file_name",
        )


def wnids() -> list[str]:
    """Returns the 1000 WordNet numbers, sorted: label i means number i."""
    return read_words("vgg_jax.data.prepare", "imagenet_wnids.txt")


def validation_wnids() -> list[str]:
    """Returns the WordNet number of each validation picture, from TFDS's package."""
    return read_words(
        "tensorflow_datasets", "datasets/imagenet2012/validation_labels.txt"
    )


def read_words(package: str, name: str) -> list[str]:
    """Reads the lines of a text file that a package holds beside its code."""
    return importlib.resources.files(package).joinpath(name).read_text().split()


def validate_tars(folder: Path, partial: bool) -> None:
    """Checks that both tar files are in a folder, and their sizes unless `partial`.

    Raises:
        FileNotFoundError: a tar file is missing.
        ValueError: one has another size than the official one.
    """
    missing = [name for name in TARS.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; download them from "
            "https://image-net.org (an account is needed) and name their folder "
            "with --from"
        )
    for split, name in TARS.items():
        size = (folder / name).stat().st_size
        if size != TAR_BYTES[split] and not partial:
            raise ValueError(
                f"expected {TAR_BYTES[split]:,} bytes in {folder / name}, found "
                f"{size:,}: not the official file, or not all of it; download it "
                "again, or add --partial to go on with what it holds"
            )


def read_members(folder: Path, partial: bool) -> dict[str, list[Member]]:
    """Finds the pictures of both tar files.

    Raises:
        ValueError: another structure, truncated, or too few of them.
    """
    names = wnids()
    labels = [names.index(wnid) for wnid in validation_wnids()]
    with progress_bar(
        "ImageNet: reading the index of train", len(names), unit="classes"
    ) as bar:
        # The smaller file first, so that a wrong one is noticed soon.
        validation = validation_members(
            folder / TARS["validation"], labels, partial=partial
        )
        train = train_members(
            folder / TARS["train"], names, partial=partial, advance=bar.update
        )
    members = {"train": train, "validation": validation}
    counts = {split: len(pictures) for split, pictures in members.items()}
    if counts != IMAGES:
        if not partial:
            raise ValueError(
                f"expected {IMAGES['train']:,} pictures in {folder / TARS['train']}, "
                f"found {counts['train']:,}; download it again, or add --partial to go "
                "on with those"
            )
        IMAGENET.report(
            f"only {counts['train']:,} training and {counts['validation']:,} "
            "validation images"
        )
    return members


def rgb_jpeg(data: bytes, name: str) -> bytes:
    """Returns a picture as an RGB or gray JPEG file, which nearly all of them are.

    The training set has 22 CMYK pictures and a PNG among its JPEG files, which are
    encoded anew, as TFDS does since version 3.0.0 of the data set.
    """
    if jpeg_header(data).components in (1, 3):
        return data
    image = transforms.decode(data, 3, name)
    # Nothing but rounding may be lost: the default halves the colors' resolution.
    full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    best = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    return cv2.imencode(".jpg", image[..., ::-1], best)[1].tobytes()


def train_members(
    path: Path, wnids: Sequence[str], *, partial: bool, advance: Callable[[int], None]
) -> list[Member]:
    """Finds the training pictures: WNID_NUMBER.JPEG in WNID.tar in a tar file.

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
    """Finds the validation pictures, ILSVRC2012_val_NUMBER.JPEG in one tar file.

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
    """Lists what a tar file from byte `start` to `end` of the open file holds."""
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
    path: Path, names: Sequence[str], expected: set[str], partial: bool
) -> None:
    strange = sorted(set(names) - expected)
    missing = sorted(expected - set(names))
    if strange or not names or len(names) != len(set(names)):
        raise ValueError(
            f"expected {min(expected)} to {max(expected)} in {path}, each once; found "
            f"{len(names)} members"
            + (f", among them {strange[0]}" if strange else "")
            + ": it is not the official file"
        )
    if missing and not partial:
        raise ValueError(
            f"{path} has {len(names):,} of {len(expected):,} members: no {missing[0]}; "
            "download it again, or add --partial to go on with what it holds"
        )


def _member(header: tarfile.TarInfo, label: int) -> Member:
    return Member(header.name, label, header.offset_data, header.size)


IMAGENET = Preparation(
    name="imagenet2012",
    version="5.1.0",
    title="ImageNet",
    files=tuple(TARS.values()),
    open=open_imagenet,
)

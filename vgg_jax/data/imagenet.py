"""ILSVRC-2012 as TFDS's `imagenet2012`, prepared without TensorFlow."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

from vgg_jax.console import progress_bar
from vgg_jax.data import transforms
from vgg_jax.data.prepare import shards, tars
from vgg_jax.data.prepare.tars import Member
from vgg_jax.data.records import Records
from vgg_jax.files import lock

VERSION = "5.1.0"  # as TFDS numbers these pictures
TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
TAR_BYTES = {"train": 147_897_477_120, "validation": 6_744_924_160}
IMAGES = {"train": 1_281_167, "validation": 50_000}

# CMYK pictures, and a PNG, among the JPEG files: RGB JPEG files since version 3.0.0.
RECODED = {
    *imagenet2012_dataset_builder.CMYK_IMAGES,
    *imagenet2012_dataset_builder.PNG_IMAGES,
}


def open_imagenet(data_dir: str, split: str) -> Records:
    """The 1,281,167 training images, or as "test" the 50,000 validation images.

    Raises:
        FileNotFoundError: not prepared in `data_dir`; says what to type.
    """
    remedy = (
        "prepare it once with `python -m vgg_jax.data.prepare imagenet2012 --from DIR "
        f"--data_dir {data_dir}`, where DIR holds {' and '.join(TARS.values())}"
    )
    directory = Path(data_dir).expanduser() / "imagenet2012" / VERSION
    official = {"train": "train", "test": "validation"}[split]
    return Records(directory, official, in_memory=False, remedy=remedy)


def prepare(folder: Path, data_dir: Path, *, partial: bool = False) -> Path:
    """Builds `data_dir/imagenet2012` from the tar files; returns its version's folder.

    The tar files' headers are all read first. Then one file of the data set is written
    after the other; a later call goes on after the last whole one. `partial` accepts
    tar files with some of the pictures, for trials.

    Raises:
        FileNotFoundError: a tar file is missing.
        ValueError: a tar file is not the official one or not whole, or the folder was
            begun with others.
        OSError: the disk has too little space.
    """
    final = data_dir / "imagenet2012" / VERSION
    if final.is_dir():
        return final
    _check_files(folder, partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(data_dir / "imagenet2012.lock", _say):
        if not final.is_dir():
            _build(folder, final, partial)
    return final


def class_names() -> list[str]:
    """The 1000 WordNet numbers, sorted: the labels' meaning."""
    return _tfds_lines("labels.txt")


def _build(folder: Path, final: Path, partial: bool) -> None:
    members = _members(folder, partial)
    directory = final.with_name(f"{VERSION}.incomplete")
    directory.mkdir(exist_ok=True)
    _check_same(directory, members)
    splits = {
        split: shards.plan(directory, "imagenet2012", split, members[split])
        for split in TARS
    }
    _check_space(directory, splits)
    for split, files in splits.items():
        progress = progress_bar(f"ImageNet: writing {split}", len(members[split]))
        with open(folder / TARS[split], "rb") as tar:
            whole = [shard for shard in files if shard.path.exists()]
            progress.update(sum(len(shard.members) for shard in whole))
            for shard in files:
                if not shard.path.exists():
                    for _ in shards.write(shard, _reader(tar.fileno())):
                        progress.update(1)
        progress.close()
    shards.write_metadata(directory, "imagenet2012", VERSION, class_names(), splits)
    (directory / "tars.sha256").unlink()
    directory.rename(final)


def _members(folder: Path, partial: bool) -> dict[str, list[Member]]:
    """The pictures of both tar files, counted."""
    names = class_names()
    labels = [names.index(wnid) for wnid in _tfds_lines("validation_labels.txt")]
    progress = progress_bar(
        "ImageNet: reading the index of train", len(names), unit="classes"
    )
    members = {
        "validation": tars.validation_members(
            folder / TARS["validation"], labels, partial=partial
        ),
        "train": tars.train_members(
            folder / TARS["train"], names, partial=partial, advance=progress.update
        ),
    }
    progress.close()
    counts = {split: len(found) for split, found in members.items()}
    if counts != IMAGES:
        if not partial:
            raise ValueError(
                f"expected {IMAGES['train']:,} pictures in {folder / TARS['train']}, "
                f"found {counts['train']:,}; download it again, or add --partial to go "
                "on with what is there"
            )
        _say(
            f"only {counts['train']:,} training and {counts['validation']:,} "
            "validation images"
        )
    return members


def _check_files(folder: Path, partial: bool) -> None:
    missing = [name for name in TARS.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; download them from "
            "https://image-net.org (an account is needed) and name their folder "
            "with --from"
        )
    for split, name in TARS.items():
        found = (folder / name).stat().st_size
        if found != TAR_BYTES[split] and not partial:
            raise ValueError(
                f"expected {TAR_BYTES[split]:,} bytes in {folder / name}, found "
                f"{found:,}: not the official file, or not all of it; download it "
                "again, or add --partial to go on with what is there"
            )


def _check_same(directory: Path, members: dict[str, list[Member]]) -> None:
    """Files of an earlier, interrupted call must hold the same pictures."""
    digest = hashlib.sha256(repr(members).encode()).hexdigest()
    note = directory / "tars.sha256"
    if not note.exists():
        note.write_text(digest)
    if note.read_text() != digest:
        raise ValueError(
            f"{directory} was begun with other tar files; go on with those, or remove "
            "it to begin again"
        )


def _check_space(directory: Path, splits: dict[str, list[shards.Shard]]) -> None:
    needed = sum(
        member.size
        for files in splits.values()
        for shard in files
        if not shard.path.exists()
        for member in shard.members
    )
    free = shutil.disk_usage(directory).free
    if free < 1.01 * needed:
        raise OSError(
            f"expected {needed / 1e9:,.1f} GB of free space for {directory}, found "
            f"{free / 1e9:,.1f} GB; name another disk with --data_dir"
        )


def _reader(tar: int) -> Callable[[Member], bytes]:
    """Reads the pictures of an open tar file."""

    def read(member: Member) -> bytes:
        data = os.pread(tar, member.size, member.offset)
        if member.name not in RECODED:
            return data
        image = transforms.decode(data, 3, member.name)
        # Nothing but rounding may be lost: the default halves the colors' resolution.
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        best = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
        return cv2.imencode(".jpg", image[..., ::-1], best)[1].tobytes()

    return read


def _tfds_lines(name: str) -> list[str]:
    """The lines of a file that TFDS keeps beside its own builder."""
    folder = Path(imagenet2012_dataset_builder.__file__).parent
    return (folder / name).read_text().split()


def _say(text: str) -> None:
    print(f"ImageNet: {text}", file=sys.stderr, flush=True)

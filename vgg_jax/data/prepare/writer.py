"""Writes a data set once, from its official files, in TensorFlow Datasets' format.

TFDS's own writer puts every example into temporary files first, and starts afresh after
an interruption. This one writes one ArrayRecord file after another, so that work can
stop and go on. The result is the same: file names, order of the examples, metadata.
"""

import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter

from vgg_jax.console import progress_bar
from vgg_jax.data.tf_example import TfExample
from vgg_jax.files import lock

# TFDS makes a power of two of files, each of this size or more.
SMALLEST_SHARD, MOST_SHARDS = 64 * 2**20, 1024
RECORD_OVERHEAD = 16  # bytes that TFDS counts for an example beside its content


class Member(NamedTuple):
    """One picture of the official files."""

    name: str  # decides the order, and is unique in a split
    label: int
    offset: int  # where the file that `Contents.read` knows has it
    size: int  # in bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """The pictures and class names that the official files of a data set hold.

    Args:
        class_names: the name of each label.
        members: the pictures of each split.
        read: (split, member) -> the picture as a PNG or JPEG file.
        shape: height, width and channels, where all pictures have the same.
        encoding: "png" or "jpeg".
        name_feature: what TFDS calls the names of the pictures; None leaves them out.
    """

    class_names: Sequence[str]
    members: Mapping[str, Sequence[Member]]
    read: Callable[[str, Member], bytes]
    shape: tuple[int | None, int | None, int] = (None, None, 3)
    encoding: str = "png"
    name_feature: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """The way of a data set into the folder `name`/`version` below `data_dir`.

    Args:
        name: the data set's name in configurations and in TFDS.
        version: the number that TFDS has for these pictures.
        title: the name that people use.
        files: the names of the official files.
        open: (folder, partial) -> their contents, until the block ends. The folder
            holds the files, or is None where `open` is to fetch them; `partial` accepts
            some of the pictures.
        fetches: `open` can get the files by itself.
    """

    name: str
    version: str
    title: str
    files: tuple[str, ...]
    open: Callable[[Path | None, bool], AbstractContextManager[Contents]]
    fetches: bool = False

    def directory(self, data_dir: Path) -> Path:
        """The folder that holds the data set once it is prepared."""
        return data_dir / self.name / self.version

    def run(
        self, data_dir: Path, folder: Path | None = None, *, partial: bool = False
    ) -> Path:
        """Writes the data set unless it is prepared already; returns its folder.

        The folder appears in one rename when it is complete. A later call goes on after
        the last whole file. Other processes wait for the one that writes.

        Args:
            data_dir: where data sets are kept.
            folder: holds the official files; may be None where they can be fetched.
            partial: accept files with some of the pictures, for trials.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not the official one or not whole, or an interrupted
                call was given other ones.
            OSError: the disk has too little space.
        """
        final = self.directory(data_dir)
        if final.is_dir():
            return final
        if folder is None and not self.fetches:
            raise ValueError(
                f"{self.name} needs --from DIR, the folder of "
                f"{' and '.join(self.files)}"
            )
        data_dir.mkdir(parents=True, exist_ok=True)
        with lock(data_dir / f"{self.name}.lock", self.report):
            if not final.is_dir():
                with self.open(folder, partial) as contents:
                    write_data_set(self, contents, final)
                self.report(f"ready in {final}")
        return final

    def report(self, text: str) -> None:
        """Prints a line of progress."""
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)


class Shard(NamedTuple):
    """One ArrayRecord file, and the pictures that belong into it."""

    path: Path
    members: Sequence[Member]


def write_data_set(preparation: Preparation, contents: Contents, final: Path) -> None:
    """Writes the files and the metadata of a data set, then names its folder `final`.

    Raises:
        ValueError: an interrupted call began with other pictures.
        OSError: the disk has too little space.
    """
    directory = final.with_name(f"{final.name}.incomplete")
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / "source.sha256"
    validate_same_source(note, contents.members)
    splits = {
        split: plan_shards(directory, preparation.name, split, members)
        for split, members in contents.members.items()
    }
    validate_free_space(directory, splits)
    for split, shards in splits.items():
        whole = [shard for shard in shards if shard.path.exists()]
        with progress_bar(
            f"{preparation.title}: writing {split}",
            len(contents.members[split]),
            done=sum(len(shard.members) for shard in whole),
        ) as bar:
            for shard in shards:
                if shard not in whole:
                    for _ in write_shard(shard, split, contents):
                        bar.update(1)
    write_metadata(directory, preparation, contents, splits)
    note.unlink()
    directory.rename(final)


def plan_shards(
    directory: Path, dataset: str, split: str, members: Sequence[Member]
) -> list[Shard]:
    """Plans the files of a split in `directory`, and their examples.

    The order is that of the hashed names, as TFDS has it: shuffled once and for all.
    """
    salt = hashlib.md5(split.encode())

    def hashed(member: Member) -> bytes:
        digest = salt.copy()
        digest.update(member.name.encode())
        return digest.digest()

    ordered = sorted(members, key=hashed)
    count = shard_count(sum(member.size for member in members), len(members))
    ends = [round(len(members) * i / count) for i in range(count + 1)]
    return [
        Shard(
            directory / f"{dataset}-{split}.array_record-{i:05}-of-{count:05}",
            ordered[ends[i] : ends[i + 1]],
        )
        for i in range(count)
    ]


def shard_count(total_bytes: int, examples: int) -> int:
    """Returns the number of files for so many examples and bytes: a power of two."""
    total_bytes += RECORD_OVERHEAD * examples
    most = min(total_bytes // SMALLEST_SHARD, examples, MOST_SHARDS)
    return 1 << max(most.bit_length() - 1, 0)


def write_shard(shard: Shard, split: str, contents: Contents) -> Iterator[Member]:
    """Writes one file, and yields each example's member when it is written.

    The file gets its name when all of it is on the disk.
    """
    partial = shard.path.with_name(shard.path.name + ".partial")
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")  # as TFDS
    try:
        for member in shard.members:
            fields: dict[str, bytes | int] = {
                "image": contents.read(split, member),
                "label": member.label,
            }
            if contents.name_feature is not None:
                fields[contents.name_feature] = member.name.encode()
            writer.write(serialize(fields))
            yield member
    finally:
        writer.close()
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, shard.path)


def serialize(fields: Mapping[str, bytes | int]) -> bytes:
    """Encodes one example as TFDS's files have it."""
    example = TfExample()
    for name, value in fields.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return example.SerializeToString()


def write_metadata(
    directory: Path,
    preparation: Preparation,
    contents: Contents,
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """Writes what TFDS wants beside the files: features, labels, lengths of splits."""
    import tensorflow_datasets as tfds  # slow to load, and only needed here

    features = {
        "image": tfds.features.Image(
            shape=contents.shape, encoding_format=contents.encoding
        ),
        "label": tfds.features.ClassLabel(names=contents.class_names),
    }
    if contents.name_feature is not None:
        features[contents.name_feature] = tfds.features.Text()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=preparation.name,
            version=preparation.version,
            data_dir=str(directory),
            module_name="",
        ),
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    split_infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(shard.members) for shard in shards],
            num_bytes=sum(shard.path.stat().st_size for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=directory,
                dataset_name=preparation.name,
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, shards in splits.items()
    ]
    info.set_splits(tfds.core.SplitDict(split_infos))
    info.write_to_directory(directory)


def validate_same_source(note: Path, members: Mapping[str, Sequence[Member]]) -> None:
    """Checks that an interrupted call, which left a note, had the same pictures.

    Raises:
        ValueError: it had other pictures.
    """
    digest = hashlib.sha256(repr(dict(members)).encode()).hexdigest()
    if not note.exists():
        note.write_text(digest)
    if note.read_text() != digest:
        raise ValueError(
            f"{note.parent} was begun with other files; go on with those, or remove it "
            "to begin again"
        )


def validate_free_space(directory: Path, splits: Mapping[str, Sequence[Shard]]) -> None:
    """Checks that the disk has room for the files that are still to be written.

    Raises:
        OSError: the disk has too little space.
    """
    needed = sum(
        member.size
        for shards in splits.values()
        for shard in shards
        if not shard.path.exists()
        for member in shard.members
    )
    free = shutil.disk_usage(directory).free
    if free < 1.01 * needed:
        raise OSError(
            f"expected {needed / 1e9:,.1f} GB of free space for {directory}, found "
            f"{free / 1e9:,.1f} GB; name another disk with --data_dir"
        )

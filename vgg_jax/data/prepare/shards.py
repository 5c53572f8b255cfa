"""ArrayRecord files in TFDS's layout, written one at a time, so that work can stop.

TFDS's own writer puts every example into temporary files first, and starts afresh after
an interruption. The result is the same: file names, order of the examples, metadata.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.hashing import Hasher
from tensorflow_datasets.core.utils.shard_utils import (
    ShardConfig,
    get_shard_boundaries,
)
from tensorflow_datasets.proto import tf_example_pb2

from vgg_jax.data.prepare.tars import Member


class Shard(NamedTuple):
    """One file, and what belongs into it."""

    path: Path
    members: Sequence[Member]


def plan(
    directory: Path, dataset: str, split: str, members: Sequence[Member]
) -> list[Shard]:
    """The files of a split in `directory`, and their examples.

    As TFDS has them: in the order of the hashed names, in files of 64 MB to 1 GB, the
    number of which is a power of two.
    """
    hasher = Hasher(split)
    ordered = sorted(members, key=lambda member: hasher.hash_key(member.name))
    total_size = sum(member.size for member in members)
    count = ShardConfig.calculate_number_shards(total_size, len(members))
    ends = get_shard_boundaries(len(members), count)
    template = _template(directory, dataset, split)
    return [
        Shard(
            Path(template.sharded_filepath(shard_index=i, num_shards=count)),
            ordered[start:end],
        )
        for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False))
    ]


def write(shard: Shard, read: Callable[[Member], bytes]) -> Iterator[Member]:
    """Writes one file, and yields each example's member when it is written.

    The file gets its name when all of it is on the disk.
    """
    partial = shard.path.with_name(shard.path.name + ".partial")
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")  # as TFDS
    try:
        for member in shard.members:
            writer.write(_serialize(member, read(member)))
            yield member
    finally:
        writer.close()
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, shard.path)


def write_metadata(
    directory: Path,
    dataset: str,
    version: str,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """What TFDS wants beside the files: features, labels, the lengths of the splits."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=class_names),
        "file_name": tfds.features.Text(),
    }
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=dataset, version=version, data_dir=str(directory), module_name=""
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
            filename_template=_template(directory, dataset, split),
        )
        for split, shards in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(split_infos))
    info.write_to_directory(directory)


def _template(
    directory: Path, dataset: str, split: str
) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=dataset,
        split=split,
        filetype_suffix="array_record",
    )


def _serialize(member: Member, image: bytes) -> bytes:
    example = tf_example_pb2.Example()
    fields = example.features.feature
    fields["image"].bytes_list.value.append(image)
    fields["label"].int64_list.value.append(member.label)
    fields["file_name"].bytes_list.value.append(member.name.encode())
    return example.SerializeToString()

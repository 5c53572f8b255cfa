"""One split of a data set that TFDS wrote as ArrayRecord files."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vgg_jax.data.base import Example


class Records:
    """Random access to the records of `split`; decodes nothing, needs no TensorFlow.

    `in_memory` reads every record when opened, for sets of some megabytes: a single
    read from an ArrayRecord file costs about 200 microseconds, one from a list none.
    """

    def __init__(self, directory: Path, split: str, *, in_memory: bool, remedy: str):
        """Opens `directory`, the folder of one version with its `dataset_info.json`.

        Raises:
            FileNotFoundError: the folder or the split is not there; ends in `remedy`.
            ValueError: the files are not ArrayRecord; ends in `remedy`.
        """
        self._arguments = (directory, split, in_memory, remedy)
        if not (directory / "dataset_info.json").is_file():
            raise FileNotFoundError(f"no data set in {directory}; {remedy}")
        builder = tfds.builder_from_directory(directory)
        if split not in builder.info.splits:
            found = ", ".join(builder.info.splits) or "none"
            raise FileNotFoundError(
                f"{directory} has no split {split!r}, only {found}; {remedy}"
            )
        file_format = builder.info.file_format
        if file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{directory} holds {file_format.value} files, which have no random "
                f"access; expected array_record; {remedy}"
            )
        self.class_names: tuple[str, ...] = tuple(builder.info.features["label"].names)
        self._name = f"{builder.name} {split}"
        # Raw, because unpacking an example through its features is ten times as slow.
        self._records: Any = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        if in_memory:
            self._records = self._records.__getitems__(range(len(self._records)))

    def __reduce__(self) -> Any:
        # A worker process opens the files itself.
        return _reopen, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        features = tf_example_pb2.Example.FromString(self._records[index])
        fields = features.features.feature
        name = str(index)
        if "file_name" in fields:
            name = fields["file_name"].bytes_list.value[0].decode()
        return {
            "image": fields["image"].bytes_list.value[0],
            "label": fields["label"].int64_list.value[0],
            "name": f"{self._name} {name}",
        }


def _reopen(directory: Path, split: str, in_memory: bool, remedy: str) -> Records:
    return Records(directory, split, in_memory=in_memory, remedy=remedy)

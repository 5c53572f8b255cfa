"""This module reads sets that TensorFlow Datasets (TFDS) prepared as ArrayRecord.

They lie below `data_dir` as TFDS has them, in NAME/VERSION or NAME/CONFIG/VERSION. No
TensorFlow is needed to read them.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from vgg_jax.data.base import CorruptImage, Example
from vgg_jax.data.prepare.writer import Preparation
from vgg_jax.data.shards import Shard, Shards
from vgg_jax.data.tf_example import TfExample
from vgg_jax.files import read_json

# Smaller splits are read whole when they are opened: a single read from an ArrayRecord
# file costs about 200 microseconds, one from a list none.
IN_MEMORY_BYTES = 256 * 2**20
# Features that hold the name of a picture, for messages.
NAME_FEATURES = ("file_name", "id")


class Records:
    """A source of the examples of one split; images stay encoded."""

    def __init__(self, directory: Path, split: str, *, remedy: str):
        """Opens `directory`, the folder of one version with its `dataset_info.json`.

        Raises:
            FileNotFoundError: the folder, the split or a file of it is missing; ends in
                `remedy`.
            ValueError: the files are not ArrayRecord, the examples are not images with
                one label each, or what describes them is damaged; ends in `remedy`.
        """
        # Loads slowly, and is not needed for other sources.
        import tensorflow_datasets as tfds

        self._arguments = (directory, split, remedy)
        if not (directory / "dataset_info.json").is_file():
            raise FileNotFoundError(f"no data set in {directory}; {remedy}")
        info = _read_info(directory, remedy)
        if split not in info.splits:
            names = ", ".join(info.splits) or "none"
            raise FileNotFoundError(
                f"{directory} has no split {split!r}, only {names}; {remedy}"
            )
        if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{directory} holds {info.file_format.value} files, which have no "
                f"random access; expected array_record; {remedy}"
            )
        try:
            self._image = _feature(info, tfds.features.Image)
            self._label = _feature(info, tfds.features.ClassLabel)
            pixels = info.features[self._image].np_dtype
            if pixels != "uint8":
                raise ValueError(f"expected pixels of type uint8, found {pixels}")
        except ValueError as error:
            raise ValueError(f"cannot use {directory}: {error}; {remedy}") from error
        self.class_names: tuple[str, ...] = tuple(info.features[self._label].names)
        self._name = f"{info.name} {split}"
        try:
            files = info.splits[split].file_instructions
        except Exception as error:  # TFDS raises whatever what it meets leads to
            raise _unreadable(directory, error, remedy) from error
        try:
            shards = Shards([Shard(Path(f.filename), f.take) for f in files])
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error}; {remedy}") from error
        self._records: Any = shards
        if info.splits[split].num_bytes <= IN_MEMORY_BYTES:
            # A damaged set is read one record after another, to know which are whole.
            with contextlib.suppress(CorruptImage):
                self._records = shards.read_all()

    def __reduce__(self) -> Any:
        # A worker process opens the files itself.
        return _reopen, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        name = f"{self._name} {index}"
        try:
            fields = TfExample.FromString(record).features.feature
            for feature in NAME_FEATURES:
                if feature in fields and fields[feature].bytes_list.value:
                    text = fields[feature].bytes_list.value[0].decode()
                    name = f"{self._name} {text}"
            image = fields[self._image].bytes_list.value[0]
            label = fields[self._label].int64_list.value[0]
        except (DecodeError, IndexError, UnicodeDecodeError) as error:
            raise CorruptImage(
                f"cannot read {name} in {self._arguments[0]}: expected an example with "
                f"the features {self._image} and {self._label} ({error})"
            ) from error
        return {"image": image, "label": label, "name": name}


def open_records(directory: Path, split: str, remedy: str) -> Records:
    """Opens the examples of "train" or "test" in the folder of one version.

    Where the data set has no test split, its validation split is the test set, as
    ImageNet's is in the papers.

    Raises:
        FileNotFoundError, ValueError: see `Records`.
    """
    if split == "test" and _has_no_test(directory, remedy):
        split = "validation"
    return Records(directory, split, remedy=remedy)


def open_prepared(preparation: Preparation, data_dir: Path, split: str) -> Records:
    """Opens "train" or "test" of a set that the prepare command writes.

    A data set whose files can be fetched is prepared now, if it is not yet.

    Raises:
        FileNotFoundError: not prepared in `data_dir`; says what to type.
        ValueError: see `Records`.
    """
    name, files = preparation.name, " and ".join(preparation.files)
    if preparation.fetches:
        preparation.run(data_dir)
        remedy = "remove it to have it prepared again, or choose another data_dir"
    else:
        remedy = (
            f"prepare it once with `python -m vgg_jax.data.prepare {name} --from DIR "
            f"--data_dir {data_dir}`, where DIR holds {files}"
        )
    return open_records(preparation.directory(data_dir), split, remedy)


def open_tfds(name: str, data_dir: Path, split: str) -> Records:
    """Opens "train" or "test" of a set that TFDS prepared below `data_dir`.

    Args:
        name: NAME, NAME/CONFIG, or either with :VERSION; the newest one otherwise.
        data_dir: the folder that TFDS calls `data_dir`.
        split: see `open_records`.

    Raises:
        FileNotFoundError: no such data set or split; the message lists what there is.
        ValueError: several configurations to choose from, or see `Records`.
    """
    remedy = (
        "prepare it with TFDS, `builder.download_and_prepare(file_format="
        "'array_record')`, or name another data.data_dir"
    )
    directory = find_version(name, data_dir, remedy)
    return open_records(directory, split, remedy)


def find_version(name: str, data_dir: Path, remedy: str) -> Path:
    """Finds the folder of a data set's version, as `open_tfds` describes."""
    path, _, wanted = name.partition(":")
    prepared = list(list_prepared(data_dir))
    versions = [
        (config, version)
        for config, version in prepared
        if config == path and (not wanted or version == wanted)
    ]
    if not versions:
        configs = sorted(
            {config for config, _ in prepared if config.startswith(path + "/")}
        )
        if configs and not wanted:
            raise ValueError(
                f"tfds:{name} has several configurations; name one of "
                + ", ".join(f"tfds:{config}" for config in configs)
            )
        names = ", ".join(f"tfds:{config}:{version}" for config, version in prepared)
        raise FileNotFoundError(
            f"no tfds:{name} in {data_dir}, which has {names or 'no data sets'}; "
            f"{remedy}"
        )
    config, version = max(versions, key=lambda one: list(map(int, one[1].split("."))))
    return data_dir / config / version


def list_prepared(data_dir: Path) -> Iterator[tuple[str, str]]:
    """Gives ("NAME" or "NAME/CONFIG", "VERSION") of each data set below `data_dir`."""
    for depth in ("*/*", "*/*/*"):
        for path in sorted(data_dir.glob(f"{depth}/dataset_info.json")):
            folder = path.parent
            if re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
                yield folder.parent.relative_to(data_dir).as_posix(), folder.name


def _feature(info: Any, kind: type) -> str:
    """Returns the name of the only feature of a kind, or of the supervised one."""
    names = sorted(name for name, one in info.features.items() if type(one) is kind)
    supervised = [name for name in names if name in (info.supervised_keys or ())]
    if len(names) != 1 and len(supervised) != 1:
        raise ValueError(
            f"expected one {kind.__name__} feature in an example, found "
            f"{', '.join(names) or 'none'}"
        )
    return supervised[0] if len(supervised) == 1 else names[0]


def _read_info(directory: Path, remedy: str) -> Any:
    """Reads what TFDS knows of the data set in a folder.

    Raises:
        ValueError: dataset_info.json or features.json is damaged; ends in `remedy`.
    """
    import tensorflow_datasets as tfds

    try:
        for name in ("dataset_info.json", "features.json"):
            read_json(directory / name)
        return tfds.builder_from_directory(directory).info
    except Exception as error:  # TFDS raises whatever what it meets leads to
        raise _unreadable(directory, error, remedy) from error


def _unreadable(directory: Path, error: Exception, remedy: str) -> ValueError:
    """Makes the error to raise where TFDS cannot use what describes a data set."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(
        f"cannot read dataset_info.json and features.json in {directory} ({reason}); "
        f"{remedy}"
    )


def _has_no_test(directory: Path, remedy: str) -> bool:
    if not (directory / "dataset_info.json").is_file():
        return False
    splits = _read_info(directory, remedy).splits
    return "test" not in splits and "validation" in splits


def _reopen(directory: Path, split: str, remedy: str) -> Records:
    return Records(directory, split, remedy=remedy)

"""This module has the table of data sets, and opens the one that a config names.

A new data set is a row of `SOURCES`, with a file beside this one if it is read in
another way than these.
"""

import dataclasses
from collections.abc import Callable

from vgg_jax.config import DataConfig, validate
from vgg_jax.console import did_you_mean
from vgg_jax.data.base import Example, Source, Subset, split_validation
from vgg_jax.data.canvases import open_fashion_mnist_boxes
from vgg_jax.data.color import load_axes
from vgg_jax.data.folder import open_folder
from vgg_jax.data.mirror import local_data, local_prepared
from vgg_jax.data.prepare.cifar_archives import CIFAR10, CIFAR100
from vgg_jax.data.prepare.idx_files import FASHION_MNIST
from vgg_jax.data.prepare.imagenet_tars import IMAGENET
from vgg_jax.data.prepare.writer import Preparation
from vgg_jax.data.records import open_prepared, open_tfds

__all__ = [
    "SOURCES",
    "DataSet",
    "Example",
    "Source",
    "Subset",
    "open_source",
    "open_training",
]

SPLITS = ("train", "validation", "test")
TFDS = "tfds:"  # what the name of a set that TFDS prepared begins with


@dataclasses.dataclass(frozen=True)
class DataSet:
    """How a data set of the table `SOURCES` is opened and prepared.

    Args:
        open: (config, split) -> the source of "train" or "test".
        has_validation: `open` also gives "validation"; otherwise it is split from
            train.
        preparation: how `python -m vgg_jax.data.prepare` writes it, or None.
    """

    open: Callable[[DataConfig, str], Source]
    has_validation: bool = False
    preparation: Preparation | None = None


def prepared(preparation: Preparation) -> DataSet:
    """Makes the row of `SOURCES` for a data set that the prepare command writes."""

    def open_split(config: DataConfig, split: str) -> Source:
        return open_prepared(preparation, local_prepared(config, preparation), split)

    return DataSet(open_split, preparation=preparation)


def _open_folder(config: DataConfig, split: str) -> Source:
    return open_folder(str(local_data(config)), split, config.validation_fraction)


SOURCES = {
    "fashion_mnist": prepared(FASHION_MNIST),
    "fashion_mnist_boxes": DataSet(open_fashion_mnist_boxes),
    "cifar10": prepared(CIFAR10),
    "cifar100": prepared(CIFAR100),
    "imagenet2012": prepared(IMAGENET),
    "folder": DataSet(_open_folder, has_validation=True),
}


def open_source(config: DataConfig, split: str) -> Source:
    """Opens the examples of one split: "train", "validation" or "test".

    Validation is split from the training set, `config.validation_fraction` of it, for
    the learning-rate plateau and the best checkpoint. Test is the official test set;
    for ImageNet the official validation set, as in section 4 of arXiv:1409.1556.

    Raises:
        ValueError: an unknown name, or a fraction that leaves a split empty.
        FileNotFoundError: the data, or for "train" the axes of the color shift, are
            missing; the message says what to type.
    """
    validate(config)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: {did_you_mean(split, SPLITS)}")
    data_set = find_data_set(config.dataset)
    if split == "train" and config.color_shift:
        load_axes(config)
    is_whole = split == "test" or data_set.has_validation
    if is_whole or (split == "train" and config.validation_fraction == 0):
        return data_set.open(config, split)
    train, validation = _split_training(config, data_set)
    return train if split == "train" else validation


def open_training(config: DataConfig) -> tuple[Source, Source]:
    """Opens the examples to train on, and those to validate with.

    They are those of `open_source`, but share what is open or in memory.

    Raises:
        ValueError, FileNotFoundError: see `open_source`.
    """
    data_set = find_data_set(config.dataset)
    if data_set.has_validation:
        return open_source(config, "train"), open_source(config, "validation")
    validate(config)
    if config.color_shift:
        load_axes(config)
    return _split_training(config, data_set)


def _split_training(config: DataConfig, data_set: DataSet) -> tuple[Subset, Subset]:
    """Splits the training set of a data set into training and validation."""
    if config.validation_fraction == 0:
        raise ValueError(
            "validation_fraction is 0, so there is no validation split; expected a "
            "small fraction such as 0.01"
        )
    return split_validation(data_set.open(config, "train"), config.validation_fraction)


def find_data_set(name: str) -> DataSet:
    """Returns the row of a data set, or makes one for a name such as "tfds:NAME".

    Raises:
        ValueError: an unknown name; the message names the nearest.
    """
    if name.startswith(TFDS):
        return DataSet(
            lambda config, split: open_tfds(
                name.removeprefix(TFDS),
                local_data(config, name.removeprefix(TFDS).replace(":", "/")),
                split,
            )
        )
    if name not in SOURCES:
        known = [*SOURCES, f"{TFDS}NAME"]
        raise ValueError(f"unknown dataset {name!r}: {did_you_mean(name, known)}")
    return SOURCES[name]

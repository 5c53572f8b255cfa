"""Opens the data set that a config names."""

import math
from collections.abc import Callable

from vgg_jax.config import DataConfig
from vgg_jax.console import did_you_mean
from vgg_jax.data.base import Example, Source, Subset, hold_out
from vgg_jax.data.color import load_axes

__all__ = ["Example", "Source", "Subset", "check_config", "open_source"]

DATASETS = ("fashion_mnist", "fashion_mnist_boxes", "imagenet2012", "folder")
SPLITS = ("train", "validation", "test")
ON_CORRUPT_IMAGE = ("raise", "skip")


def open_source(config: DataConfig, split: str) -> Source:
    """The examples of one split: "train", "validation" or "test".

    Validation is held out of the training set, `config.validation_fraction` of it, for
    the learning-rate plateau and the best checkpoint. Test is the official test set;
    for ImageNet the official validation set, as in section 4 of arXiv:1409.1556.

    Raises:
        ValueError: an unknown name, or a fraction that leaves a split empty.
        FileNotFoundError: the data, or for "train" the axes of the color shift, are
            not there; the message says what to type.
    """
    check_config(config)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: {did_you_mean(split, SPLITS)}")
    if split == "train" and config.color_shift:
        load_axes(config)
    # Imported here: reading a folder of pictures needs no TFDS, which loads slowly.
    if config.dataset == "folder":
        from vgg_jax.data.folder import open_folder

        return open_folder(config.data_dir, split, config.validation_fraction)
    open_records: Callable[[str, str], Source]
    if config.dataset == "fashion_mnist":
        from vgg_jax.data.fashion_mnist import open_fashion_mnist as open_records
    elif config.dataset == "fashion_mnist_boxes":
        from vgg_jax.data.canvases import open_fashion_mnist_boxes as open_records
    else:
        from vgg_jax.data.imagenet import open_imagenet as open_records

    if split == "test":
        return open_records(config.data_dir, "test")
    if split == "validation" and config.validation_fraction == 0:
        raise ValueError(
            "validation_fraction is 0, so there is no validation split; expected a "
            "small fraction such as 0.01"
        )
    records = open_records(config.data_dir, "train")
    if config.validation_fraction == 0:
        return records
    train, validation = hold_out(records, config.validation_fraction)
    return train if split == "train" else validation


def check_config(config: DataConfig) -> None:
    """Refuses settings that cannot work, before anything slow happens.

    Raises:
        ValueError: says the field, what was found and what is possible.
    """
    if config.dataset not in DATASETS:
        near = did_you_mean(config.dataset, DATASETS)
        raise ValueError(f"unknown dataset {config.dataset!r}: {near}")
    if config.on_corrupt_image not in ON_CORRUPT_IMAGE:
        near = did_you_mean(config.on_corrupt_image, ON_CORRUPT_IMAGE)
        raise ValueError(
            f"unknown on_corrupt_image {config.on_corrupt_image!r}: {near}"
        )
    if not 0 <= config.validation_fraction < 1:
        raise ValueError(
            f"validation_fraction must be in [0, 1), found {config.validation_fraction}"
        )
    if len(config.mean) != len(config.std):
        raise ValueError(
            "mean and std need one number a channel, found "
            f"{len(config.mean)} and {len(config.std)}"
        )
    if not all(0 < std < math.inf for std in config.std):
        raise ValueError(f"pixels are divided by std, found {config.std}")
    if not 0 <= config.color_shift < math.inf:
        raise ValueError(
            f"color_shift cannot be negative, found {config.color_shift}; the "
            "paper's is 0.1, 0 switches it off"
        )
    if config.crop < 1:
        raise ValueError(f"crop must be at least 1 pixel, found {config.crop}")
    if not config.crop <= config.scale_min <= config.scale_max:
        raise ValueError(
            "expected crop <= scale_min <= scale_max, so that a crop fits into the "
            f"rescaled image; found crop {config.crop}, scale_min {config.scale_min}, "
            f"scale_max {config.scale_max}"
        )
    if config.num_workers < 0 or config.num_threads < 0:
        raise ValueError(
            "num_workers and num_threads cannot be negative, found "
            f"{config.num_workers} and {config.num_threads}"
        )

"""Opens the data set that a config names."""

from collections.abc import Callable

from vgg_jax.config import DataConfig, validate
from vgg_jax.console import did_you_mean
from vgg_jax.data.base import Example, Source, Subset, hold_out
from vgg_jax.data.color import load_axes

__all__ = ["Example", "Source", "Subset", "open_source"]

DATASETS = ("fashion_mnist", "fashion_mnist_boxes", "imagenet2012", "folder")
SPLITS = ("train", "validation", "test")


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
    validate(config)
    if config.dataset not in DATASETS:
        near = did_you_mean(config.dataset, DATASETS)
        raise ValueError(f"unknown dataset {config.dataset!r}: {near}")
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

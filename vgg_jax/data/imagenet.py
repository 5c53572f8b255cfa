"""ILSVRC-2012, as TFDS's `imagenet2012` in ArrayRecord files."""

from pathlib import Path

from vgg_jax.data.records import Records

VERSION = "5.1.0"
TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def open_imagenet(data_dir: str, split: str) -> Records:
    """The 1,281,167 training images, or as "test" the 50,000 validation images.

    Raises:
        FileNotFoundError: not prepared in `data_dir`; says what to type.
    """
    remedy = (
        "prepare it once with `python -m vgg_jax.data.prepare imagenet2012 --from DIR "
        f"--data_dir {data_dir}`, where DIR holds {' and '.join(TARS)}"
    )
    directory = Path(data_dir).expanduser() / "imagenet2012" / VERSION
    official = {"train": "train", "test": "validation"}[split]
    return Records(directory, official, in_memory=False, remedy=remedy)

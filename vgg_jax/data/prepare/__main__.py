"""Prepares a data set for training, once and for all.

  python -m vgg_jax.data.prepare fashion_mnist
  python -m vgg_jax.data.prepare imagenet2012 --from DIR

Where it was stopped, the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_jax import cli
from vgg_jax.config import DataConfig

DATASETS = ("fashion_mnist", "imagenet2012")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.data.prepare", __doc__)
    parser.add_argument(
        "dataset",
        type=cli.one_of(DATASETS),
        metavar="DATASET",
        help=" or ".join(DATASETS),
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="the folder with the downloaded files: for fashion_mnist the four idx "
        "files (found or fetched if not given), for imagenet2012 the two tar files",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path(DataConfig.data_dir),
        metavar="DIR",
        help=f"where the prepared data goes; {DataConfig.data_dir} by default",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept tar files with some pictures only",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prepares the data set; returns 0."""
    data_dir = values.data_dir.expanduser().resolve()
    source = values.source and values.source.expanduser().resolve()
    if values.dataset == "fashion_mnist":
        from vgg_jax.data import fashion_mnist

        name = "Fashion-MNIST"
        folder = fashion_mnist.prepare(data_dir, source)
    else:
        from vgg_jax.data import imagenet

        name = "ImageNet"
        if source is None:
            files = " and ".join(imagenet.TARS.values())
            raise cli.UsageError(f"imagenet2012 needs --from, the folder of {files}")
        folder = imagenet.prepare(source, data_dir, partial=values.partial)
    print(f"{name} is in {folder}")  # whether built now or long ago
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

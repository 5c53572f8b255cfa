"""Prepares a data set for training, once and for all.

  python -m vgg_jax.data.prepare fashion_mnist
  python -m vgg_jax.data.prepare cifar10 --from DIR

Where it was stopped, the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_jax import cli
from vgg_jax.config import DataConfig
from vgg_jax.data.sources import SOURCES

PREPARATIONS = {
    name: row.preparation for name, row in SOURCES.items() if row.preparation
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.data.prepare", __doc__)
    parser.add_argument(
        "dataset",
        type=cli.one_of(PREPARATIONS),
        metavar="DATASET",
        help=" or ".join(PREPARATIONS),
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="the folder with the downloaded files: "
        + "; ".join(
            f"for {name} {', '.join(one.files)}"
            + (" (fetched if not given)" if one.fetches else "")
            for name, one in PREPARATIONS.items()
        ),
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
        help="accept files with some of the pictures, for trials",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prepares the data set; returns 0."""
    data_dir = values.data_dir.expanduser().resolve()
    source = values.source and values.source.expanduser().resolve()
    preparation = PREPARATIONS[values.dataset]
    is_ready = preparation.directory(data_dir).is_dir()
    if source is None and not (is_ready or preparation.fetches):
        files = " and ".join(preparation.files)
        raise cli.UsageError(f"{values.dataset} needs --from, the folder of {files}")
    directory = preparation.run(data_dir, source, partial=values.partial)
    print(
        f"{preparation.title} is in {directory}"
        + (", prepared by an earlier call" if is_ready else "")
    )
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

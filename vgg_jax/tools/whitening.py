"""Computes the whitening of a training set's images, for data.whiten=True.

  python -m vgg_jax.tools.whitening --config configs/nin_cifar.py

All training images count, with those that are held out for validation. A run with
--config.data.whiten=True uses what this leaves beside the data.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.data.sources import open_source
from vgg_jax.data.zca import measure_whitening, save_whitening, whitening_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    command = "python -m vgg_jax.tools.whitening"
    parser = cli.Parser(command, __doc__, config=(Config,))
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Measures the whitening and saves it; returns 0."""
    config = dataclasses.replace(
        values.config.data, validation_fraction=0.0, color_shift=0.0
    )
    path = whitening_path(config)
    save_whitening(path, measure_whitening(open_source(config, "train"), config))
    print(f"saved in {path}; --config.data.whiten=True uses it")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

"""Computes the whitening of a training set's images, for data.whiten=True.

  python -m vgg_jax.tools.whitening --config configs/nin_cifar.py

All training images count, with those that are held out for validation. A run with
--config.data.whiten=True uses what this leaves beside the data.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vgg_jax import cli
from vgg_jax.config import Config, DataConfig
from vgg_jax.console import progress_bar
from vgg_jax.data.base import Source
from vgg_jax.data.pipeline import eval_batches
from vgg_jax.data.sources import open_source
from vgg_jax.data.zca import (
    VARIANCE_BIAS,
    Whitening,
    normalize_contrast,
    save_whitening,
    whitening_path,
)

BATCH = 500  # images whose products are added at once


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


def measure_whitening(source: Source, config: DataConfig) -> Whitening:
    """Measures all images of a source, as `config` rescales and crops them.

    Raises:
        CorruptImage: unless `config.on_corrupt_image` is "skip".
    """
    side, channels = config.crop, len(config.mean)
    count, total, products = 0, 0.0, 0.0
    with progress_bar("whitening", len(source)) as bar:
        for batch in eval_batches(
            source,
            config,
            channels=channels,
            scale=side,
            crop=side,
            batch_size=min(BATCH, len(source)),
        ):
            images = jnp.asarray(batch["image"][batch["weight"] > 0], jnp.float32)
            rows = np.asarray(normalize_contrast(images)).reshape(len(images), -1)
            count += len(rows)
            total = total + rows.sum(axis=0, dtype=np.float64)
            products = products + (rows.T @ rows).astype(np.float64)
            bar.update(len(rows))
    mean = np.asarray(total) / count
    covariance = np.asarray(products) / count - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance + VARIANCE_BIAS * np.eye(len(mean)))
    matrix = (axes / np.sqrt(variances)) @ axes.T
    return Whitening(
        mean.reshape(side, side, channels).astype(np.float32),
        matrix.astype(np.float32),
    )


if __name__ == "__main__":
    sys.exit(main())

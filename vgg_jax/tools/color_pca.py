"""Measures the colors of a training set: mean and principal components of its pixels.

  python -m vgg_jax.tools.color_pca --config configs/NAME.py [--images 10000]

A run with --config.data.color_pca=computed uses what this leaves beside the data.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgg_jax import cli
from vgg_jax.config import Config, DataConfig
from vgg_jax.console import progress_bar
from vgg_jax.data.base import Source
from vgg_jax.data.color import computed_path
from vgg_jax.data.pipeline import moment_batches
from vgg_jax.data.sources import open_source
from vgg_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How the pixels of a training set, 0-255, are distributed."""

    images: int
    mean: np.ndarray  # [C]
    deviations: np.ndarray  # [C], along the principal axes, largest first
    axes: np.ndarray  # [C, C], unit vectors, one a row

    def save(self, path: Path) -> None:
        """Writes what `color.load_axes` reads, whole or not at all."""
        values = {
            "images": self.images,
            "mean": self.mean.tolist(),
            "deviations": self.deviations.tolist(),
            "axes": (self.deviations[:, np.newaxis] * self.axes).tolist(),
        }
        write_json(path, values)

    def __str__(self) -> str:
        lines = [f"mean {_numbers(self.mean, 3)} of {self.images:,} images"]
        for deviation, axis in zip(self.deviations, self.axes, strict=True):
            lines.append(f"deviation {deviation:6.2f} along {_numbers(axis, 4)}")
        return "\n".join(lines)


def measure_pixels(source: Source, config: DataConfig, images: int) -> Pixels:
    """Moments and principal components of the pixels of `images` examples.

    They are drawn from the source once and for all, or all of a smaller one. They are
    rescaled to `config.scale_min` as in training, and each counts alike.

    Raises:
        ValueError: fewer than one image.
        CorruptImage: unless `config.on_corrupt_image` is "skip".
    """
    if images < 1:
        raise ValueError(f"expected --images of at least 1, got {images}")
    numbers = np.random.RandomState(0).permutation(len(source))[:images]
    channels = len(config.mean)
    count, first, second = 0, np.zeros(channels), np.zeros((channels, channels))
    with progress_bar("colors", len(numbers)) as bar:
        for sums in moment_batches(source, config, channels=channels, numbers=numbers):
            count += int(sums["count"])
            first += sums["first"]
            second += sums["second"]
            bar.update(int(sums["count"]))
    mean = first / count
    variances, columns = np.linalg.eigh(second / count - np.outer(mean, mean))
    axes = columns.T[::-1]
    # A principal axis has no sign of its own.
    axes = axes * np.where(axes.sum(1, keepdims=True) < 0, -1, 1)
    return Pixels(count, mean, np.sqrt(np.maximum(variances[::-1], 0)), axes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    command = "python -m vgg_jax.tools.color_pca"
    parser = cli.Parser(command, __doc__, config=(Config,))
    parser.add_argument(
        "--images",
        type=cli.positive,
        default=10_000,
        metavar="N",
        help="images to measure at most; 10,000 by default",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Measures, prints and saves; returns 0."""
    # Whatever shift the configuration asks for, its axes are not computed yet.
    config = dataclasses.replace(values.config.data, color_shift=0.0)
    pixels = measure_pixels(open_source(config, "train"), config, values.images)
    path = computed_path(config)
    pixels.save(path)
    print(pixels)
    print(f"saved in {path}; --config.data.color_pca=computed uses it, and")
    print(f'--config.data.mean="{_numbers(pixels.mean, 3)}" this mean')
    return cli.DONE


def _numbers(values: np.ndarray, digits: int) -> str:
    texts = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"({texts},)" if len(values) == 1 else f"({texts})"


if __name__ == "__main__":
    sys.exit(main())

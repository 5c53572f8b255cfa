"""Measures the colors of a training set: mean and principal components of its pixels.

  python -m vgg_jax.tools.color_pca --config configs/NAME.py [--images 10000]

A run with --config.data.color_pca=computed uses what this leaves beside the data.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from etils.epath import Path

from vgg_jax import cli
from vgg_jax.config import Config, DataConfig
from vgg_jax.console import progress_bar
from vgg_jax.data.base import Source
from vgg_jax.data.color import computed_path
from vgg_jax.data.pipeline import moment_batches
from vgg_jax.data.sources import open_source
from vgg_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """How the pixels of a training set, 0-255, are distributed.

    Args:
        images: how many images were measured.
        mean: [C].
        deviations: [C], standard deviations along the principal axes, largest first.
        axes: [C, C], the principal axes as unit vectors, one a row.
    """

    images: int
    mean: np.ndarray
    deviations: np.ndarray
    axes: np.ndarray

    def save(self, path: Path) -> None:
        """Writes the file that `color.load_axes` reads, whole or not at all."""
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


def measure_pixels(source: Source, config: DataConfig, images: int) -> PixelStatistics:
    """Measures the mean and the principal components of a training set's pixels.

    Each image counts alike, rescaled to the short side `config.scale_min` as in
    training.

    Args:
        source: the images.
        config: how they are rescaled, and what is done with corrupt ones.
        images: how many examples to draw, the same ones every time; a smaller source
            gives all that it has.

    Raises:
        ValueError: `images` is less than one.
        CorruptImage: an image cannot be decoded, unless `config.on_corrupt_image` is
            "skip".
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
    variances, eigenvectors = np.linalg.eigh(second / count - np.outer(mean, mean))
    axes = eigenvectors.T[::-1]
    # A principal axis has no sign of its own.
    axes = axes * np.where(axes.sum(1, keepdims=True) < 0, -1, 1)
    deviations = np.sqrt(np.maximum(variances[::-1], 0))
    return PixelStatistics(count, mean, deviations, axes)


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
    """Measures the colors, prints them and saves them; returns 0."""
    # Whatever shift the configuration asks for, its axes are not computed yet.
    config = dataclasses.replace(values.config.data, color_shift=0.0)
    statistics = measure_pixels(open_source(config, "train"), config, values.images)
    path = computed_path(config)
    statistics.save(path)
    print(statistics)
    print(f"saved in {path}; --config.data.color_pca=computed uses it, and")
    print(f'--config.data.mean="{_numbers(statistics.mean, 3)}" this mean')
    return cli.DONE


def _numbers(values: np.ndarray, digits: int) -> str:
    texts = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"({texts},)" if len(values) == 1 else f"({texts})"


if __name__ == "__main__":
    sys.exit(main())

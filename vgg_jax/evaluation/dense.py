"""Dense evaluation: the network on the whole image (section 3.2 of arXiv:1409.1556)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import softmax

from vgg_jax.config import BUCKET_RATIOS, IMAGENET_MEAN
from vgg_jax.console import did_you_mean
from vgg_jax.evaluation.padding import shapes, smallest_fitting
from vgg_jax.evaluation.tiling import tiled_score_map
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import inside, output_sizes
from vgg_jax.preprocessing import Normalization

# Where the soft-max stands relative to the spatial mean, which the paper leaves open.
AVERAGINGS = ("score_map", "posteriors")


def check_averaging(averaging: str) -> None:
    """Raises: ValueError: not one of `AVERAGINGS`; the message names the nearest."""
    if averaging not in AVERAGINGS:
        raise ValueError(
            f"unknown averaging {averaging!r}: {did_you_mean(averaging, AVERAGINGS)}"
        )


def check_scales(scales: Sequence[int]) -> None:
    """Raises: ValueError: no scale Q, or one below 1 pixel."""
    if not scales or min(scales) < 1:
        raise ValueError(f"expected scales of at least 1 pixel, got {tuple(scales)}")


def spatial_posteriors(
    scores: jax.Array, averaging: str, sizes: jax.Array | None = None
) -> jax.Array:
    """One distribution from a class score map: [N, h, w, C] -> [N, C].

    "score_map": mean of the scores over space, then soft-max. "posteriors": soft-max of
    each cell, then their mean. `sizes`, int32 [N, 2], are the height and width of each
    map where those of different sizes share the array.

    Raises:
        ValueError: an unknown averaging.
    """
    check_averaging(averaging)
    cells = None if sizes is None else inside(scores.shape, sizes)
    if averaging == "score_map":
        return jax.nn.softmax(scores.mean(axis=(1, 2), where=cells))
    return jax.nn.softmax(scores).mean(axis=(1, 2), where=cells)


def mirror(images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """Images flipped left to right, each within its own width: [N, H, W, C]."""
    if sizes is None:
        return images[:, :, ::-1]
    width = images.shape[2]
    columns = (sizes[:, 1, None] - 1 - np.arange(width)) % width
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2)


def posteriors(
    model: ConvNet,
    images: jax.Array,
    *,
    averaging: str,
    flip: bool,
    sizes: jax.Array | None = None,
) -> jax.Array:
    """Soft-max posteriors of one scale: [N, H, W, C] -> float32 [N, num_classes].

    Args:
        model: a classifier.
        images: normalized as its weights expect.
        averaging: one of `AVERAGINGS`.
        flip: average them with the posteriors of the images flipped left to right.
        sizes: int32 [N, 2], as `ConvNet.score_map` has them: the height and width of
            each image where those of different sizes share a batch.

    Raises:
        ValueError: an unknown averaging, or images that do not fit the network.
    """
    cells = None if sizes is None else output_sizes(model.layers, sizes)

    def of(images: jax.Array) -> jax.Array:
        scores = model.score_map(images, sizes=sizes)
        return spatial_posteriors(scores, averaging, cells)

    return (of(images) + of(mirror(images, sizes))) / 2 if flip else of(images)


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std", "averaging"))
def _compiled(
    state: nnx.State,
    images: jax.Array,
    sizes: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    averaging: str,
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    images = Normalization(mean, std)(images)
    return posteriors(model, images, averaging=averaging, flip=True, sizes=sizes)


def tiled_posteriors(
    model: ConvNet,
    image: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    averaging: str,
) -> np.ndarray:
    """Those of one scale for an image of any shape: [H, W, C] -> float32 [num_classes].

    The image and its mirror image go through the network tile by tile, so that no shape
    needs a program of its own; otherwise as `posteriors`, with the flip.
    """
    check_averaging(averaging)

    def of(image: np.ndarray) -> np.ndarray:
        scores = tiled_score_map(model, image, mean=mean, std=std)
        cells = scores.reshape(-1, scores.shape[-1])
        if averaging == "score_map":
            return softmax(cells.mean(axis=0))
        return softmax(cells, axis=-1).mean(axis=0)

    return (of(image) + of(image[:, ::-1])) / 2


def dense_posteriors(
    model: ConvNet,
    image: np.ndarray,
    scales: Sequence[int] = (256, 384, 512),
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
    averaging: str = "score_map",
    bucket_ratios: Sequence[float] = BUCKET_RATIOS,
) -> jax.Array:
    """Section 3.2 for one image of any size: uint8 [H, W, C] -> float32 [num_classes].

    The image is rescaled so that its short side is each of `scales`; the network runs
    on the whole of it and on its mirror image; soft-max posteriors are averaged over
    both and over the scales. The rescaled image is padded to one of a few shapes and
    the padding masked, which changes no result, so that a program compiled for one
    image serves the next: at most one for each bucket and scale, and one for the tiles
    of images that are longer than every bucket.

    Args:
        model: a classifier.
        image: pixels 0-255.
        scales: short sides Q, in pixels.
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.
        averaging: "score_map", mean over space then soft-max; or "posteriors", soft-max
            of each cell then mean.
        bucket_ratios: width over height of the buckets.

    Raises:
        ValueError: another kind of array, statistics for another number of channels, no
            scale, an unknown averaging, or a scale too small for the network.
    """
    # Here, so that importing vgg_jax does not import the decoders.
    from vgg_jax.data.transforms import rescale

    image = np.asarray(image)
    channels = model.in_channels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(
            f"expected an image uint8 [H, W, {channels}], got {image.dtype} "
            f"{list(image.shape)}"
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"expected {channels} values of mean and of std, one a channel, got "
            f"{len(mean)} and {len(std)}; pass those that the network was trained with"
        )
    check_scales(scales)
    statistics: dict[str, Any] = {
        "mean": tuple(mean),
        "std": tuple(std),
        "averaging": averaging,
    }
    graphdef, state = nnx.split(model)

    def at_scale(scale: int) -> jax.Array | np.ndarray:
        pixels = rescale(image, scale)
        height, width = size = pixels.shape[:2]
        bucket = smallest_fitting(shapes(bucket_ratios, scale), height, width)
        if bucket is None:
            return tiled_posteriors(model, pixels, **statistics)
        padded = np.zeros((1, *bucket, channels), np.uint8)
        padded[0, :height, :width] = pixels
        sizes = np.asarray([size], np.int32)
        return _compiled(state, padded, sizes, graphdef=graphdef, **statistics)[0]

    return jnp.mean(jnp.stack([at_scale(scale) for scale in scales]), axis=0)

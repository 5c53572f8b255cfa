"""Evaluates one image densely (section 3.2 of arXiv:1409.1556).

Images of any size are padded to a few shapes, so that few programs compile. A rescaled
image has short side Q, so one list of ratios, width over height, gives the shapes of
every scale; `python -m vgg_jax.tools.bucket_cost` says what they cost.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.config import BUCKET_RATIOS, IMAGENET_MEAN, Config
from vgg_jax.inference.forward import (
    MapHead,
    Network,
    Posteriors,
    validate_image,
    validate_scales,
)
from vgg_jax.inference.tiling import run_tiled
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization

Shape = tuple[int, int]  # height and width, in pixels


def padded_shapes(ratios: Iterable[float], scale: int) -> tuple[Shape, ...]:
    """Returns the shapes that images of short side Q are padded to, smallest first.

    Args:
        ratios: width over height of each shape.
        scale: Q, in pixels.

    Raises:
        ValueError: a ratio is not a number above zero.
    """
    shapes: set[Shape] = set()
    for ratio in ratios:
        if not 0 < ratio < math.inf:
            raise ValueError(
                f"expected ratios of width to height above 0, got {ratio}; change "
                "bucket_ratios"
            )
        long = math.ceil(scale * max(ratio, 1 / ratio))
        shapes.add((scale, long) if ratio >= 1 else (long, scale))
    return tuple(sorted(shapes, key=math.prod))


def smallest_fitting(shapes: Iterable[Shape], height: int, width: int) -> Shape | None:
    """Returns the first of `shapes` that holds an image; None if none of them does."""
    return next((s for s in shapes if s[0] >= height and s[1] >= width), None)


def images_per_device(config: Config, devices: int, shape: Shape) -> int:
    """Returns how many whole images, padded to a shape, a device is given at once.

    It is as many as have no more pixels than the device's share of
    `evaluation.batch_size` training crops, and at least one. Several are an even
    number, of which a TPU makes pairs.
    """
    crops = -(-config.evaluation.crops_at_once(devices) // devices)
    images = crops * config.data.crop**2 // math.prod(shape)
    return max(1, images - images % 2)


def largest_batch(config: Config, devices: int) -> tuple[int, Shape]:
    """Returns how many images of which shape are the most pixels a device is given.

    Of the buckets at all of `evaluation.scales`; see `images_per_device`.
    """
    batches = [
        (images_per_device(config, devices, shape), shape)
        for scale in config.evaluation.scales
        for shape in padded_shapes(config.evaluation.bucket_ratios, scale)
    ]
    return max(batches, key=lambda batch: batch[0] * math.prod(batch[1]))


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
    """Returns the posteriors of one image: uint8 [H, W, C] -> float32 [num_classes].

    Section 3.2 of arXiv:1409.1556, for an image of any size. The image is rescaled so
    that its short side is each of `scales`; the network runs on the whole of it and on
    its mirror image; soft-max posteriors are averaged over both and over the scales.
    The rescaled image is padded to one of a few shapes and the padding masked, which
    changes no result, so that a program compiled for one image serves the next: at most
    one for each bucket and scale, and one for the tiles of images that are longer than
    every bucket.

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
        ValueError: the image is another kind of array, the statistics are for another
            number of channels, the averaging is unknown, or there is no scale or one
            too small for the network.
    """
    network = Network.from_model(model, Normalization(mean, std))
    return image_posteriors(
        network, image, scales, averaging=averaging, bucket_ratios=bucket_ratios
    )


def image_posteriors(
    network: Network,
    image: np.ndarray,
    scales: Sequence[int],
    *,
    averaging: str = "score_map",
    bucket_ratios: Sequence[float] = BUCKET_RATIOS,
) -> jax.Array:
    """Does what `dense_posteriors` does, for a network that knows its normalization.

    uint8 [H, W, C] -> float32 [num_classes]. See `dense_posteriors` for the arguments
    and the errors.
    """
    # Here, so that importing vgg_jax does not import the decoders.
    from vgg_jax.data.transforms import rescale

    image = np.asarray(image)
    validate_image(image, network.channels)
    validate_scales(scales)
    head = Posteriors(averaging=averaging)
    by_scale = [
        run_padded(network, head, rescale(image, scale), scale, bucket_ratios)[0]
        for scale in scales
    ]
    return jnp.mean(jnp.stack(by_scale), axis=0)


def run_padded(
    network: Network,
    head: MapHead,
    image: np.ndarray,
    scale: int,
    bucket_ratios: Sequence[float] = BUCKET_RATIOS,
) -> Any:
    """Runs a head on one image; returns one row of what the head gives.

    The image is padded to the smallest bucket that holds it, so that images share
    programs; one that is longer than every bucket goes through in tiles.

    Args:
        network: the network.
        head: what is made of the image's map.
        image: uint8 [H, W, C].
        scale: the image's short side, in pixels.
        bucket_ratios: width over height of the buckets.
    """
    height, width = image.shape[:2]
    bucket = smallest_fitting(padded_shapes(bucket_ratios, scale), height, width)
    if bucket is None:
        return run_tiled(network, head, image, {})
    padded = np.zeros((1, *bucket, network.channels), np.uint8)
    padded[0, :height, :width] = image
    return network.run(head, padded, np.asarray([(height, width)], np.int32))

"""Boxes that a network predicts all over an image (appendix A of arXiv:1409.1556).

A localization network's score map has a box in each cell, relative to what the cell
sees: cell (i, j) of a VGG sees the training crop at (32 i, 32 j).
"""

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax import boxes
from vgg_jax.boxes import class_boxes
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import (
    Conv,
    Layer,
    Pool,
    fill_outside,
    output_size,
    output_sizes,
)


def stride(layers: tuple[Layer, ...]) -> int:
    """Pixels of the image from one cell of the map to the next."""
    steps = [layer.stride for layer in layers if isinstance(layer, Conv | Pool)]
    return int(np.prod(steps))


def cell_windows(
    layers: tuple[Layer, ...], crop: int, height: int, width: int
) -> np.ndarray:
    """What each cell of the map sees of an image, in its pixels: boxes [h, w, 4].

    Args:
        layers: of the network.
        crop: side of its training crop, in pixels.
        height, width: of the image, in pixels.

    Raises:
        ValueError: the map of a training crop is not one cell.
    """
    cells = output_size(layers, crop)
    if cells != 1:
        raise ValueError(
            f"expected a network that gives one box for a crop of {crop}x{crop}, got "
            f"{cells}x{cells}; for VGG take head='paper' with fc_kernel={crop} // 32"
        )
    step = stride(layers)
    rows, columns = (output_size(layers, side) for side in (height, width))
    windows = np.empty((rows, columns, 4))
    windows[..., 0] = step * np.arange(columns) + crop / 2
    windows[..., 1] = step * np.arange(rows)[:, None] + crop / 2
    windows[..., 2:] = crop
    return windows


def dense_boxes(
    localizer: ConvNet,
    images: jax.Array,
    sizes: jax.Array,
    classes: jax.Array,
    crop: int,
) -> jax.Array:
    """Boxes of classes from every cell: [N, H, W, C], int [N, k] -> [N, h, w, k, 4].

    Args:
        localizer: predicts boxes.
        images: normalized as its weights expect.
        sizes: int [N, 2], height and width of each image without its padding.
        classes: k of each image.
        crop: side of its training crop, in pixels.

    Returns:
        Boxes relative to the image without its padding.

    Raises:
        ValueError: as `cell_windows`, or images that do not fit the network.
    """
    windows = cell_windows(localizer.layers, crop, *images.shape[1:3])
    outputs = localizer.score_map(images, sizes=sizes)
    found = class_boxes(outputs, classes[:, None, None])
    sides = jnp.float32(sizes[:, ::-1])
    whole = jnp.concatenate([sides / 2, sides], axis=-1)[:, None, None, None]
    in_pixels = boxes.seen_from(jnp.float32(windows)[:, :, None], found)
    return boxes.relative_to(whole, in_pixels)


def dense_ratings(
    classifier: ConvNet, images: jax.Array, sizes: jax.Array, classes: jax.Array
) -> jax.Array:
    """Posteriors of classes in every cell: [N, H, W, C], int [N, k] -> [N, h, w, k].

    Cells outside an image's own map, because of its padding, have -1.

    Args:
        classifier: a classifier.
        images, sizes, classes: as `dense_boxes`.

    Raises:
        ValueError: images that do not fit the network.
    """
    posteriors = jax.nn.softmax(classifier.score_map(images, sizes=sizes))
    found = jnp.take_along_axis(posteriors, classes[:, None, None], axis=-1)
    return fill_outside(found, output_sizes(classifier.layers, sizes), -1.0)

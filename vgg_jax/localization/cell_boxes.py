"""Turns the maps of a localization network into boxes (appendix A).

A localization network's score map has a box in each cell, relative to what the cell
sees: cell (i, j) of a VGG sees the training crop at (32 i, 32 j).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax import boxes
from vgg_jax.boxes import class_boxes
from vgg_jax.inference.forward import Extras, MapHead
from vgg_jax.models.layers import (
    Layer,
    fill_outside,
    output_size,
    receptive_fields,
)
from vgg_jax.models.network import class_scores


def cell_windows(
    layers: tuple[Layer, ...], crop: int, rows: int, columns: int
) -> np.ndarray:
    """Returns the window of an image that each cell of its map sees, in pixels.

    Args:
        layers: the rows of the network.
        crop: side of the network's training crop, in pixels.
        rows, columns: the height and width of the map.

    Returns:
        Boxes [rows, columns, 4].

    Raises:
        ValueError: the map of a training crop is not one cell.
    """
    cells = output_size(layers, crop)
    if cells != 1:
        raise ValueError(
            f"expected a network that gives one box for a crop of {crop}x{crop}, got "
            f"{cells}x{cells}; for VGG take head='paper' with fc_kernel={crop} // 32"
        )
    step = receptive_fields(layers)[-1].stride
    windows = np.empty((rows, columns, 4))
    windows[..., 0] = step * np.arange(columns) + crop / 2
    windows[..., 1] = step * np.arange(rows)[:, None] + crop / 2
    windows[..., 2:] = crop
    return windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterBoxes(MapHead):
    """The head that gives the box of each image's own class: [N, 1, 4].

    The box is that of the whole map, relative to the image. The head takes "label", int
    [N].
    """

    extras: ClassVar[tuple[str, ...]] = ("label",)

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> jax.Array:
        """Picks the box of each image's label."""
        return class_boxes(class_scores(maps), extras["label"][:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellBoxes(MapHead):
    """The head that gives the boxes of k classes in every cell: [N, h, w, k, 4].

    Boxes are relative to the image without its padding. The head takes "classes", int
    [N, k].

    Args:
        crop: side of the network's training crop, in pixels.

    Raises:
        ValueError: the map of a training crop is not one cell.
    """

    extras: ClassVar[tuple[str, ...]] = ("classes",)
    crop: int

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> jax.Array:
        """Turns each cell's boxes, relative to its window, into boxes of the image."""
        assert sizes is not None
        windows = cell_windows(layers, self.crop, *maps.shape[1:3])
        in_window = class_boxes(maps, extras["classes"][:, None, None])
        sides = jnp.float32(sizes[:, ::-1])
        whole = jnp.concatenate([sides / 2, sides], axis=-1)[:, None, None, None]
        in_pixels = boxes.seen_from(jnp.float32(windows)[:, :, None], in_window)
        return boxes.relative_to(whole, in_pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRatings(MapHead):
    """The head that gives posteriors of k classes in every cell: [N, h, w, k].

    Cells outside an image's own map, because of its padding, have -1. The head takes
    "classes", int [N, k].
    """

    extras: ClassVar[tuple[str, ...]] = ("classes",)

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> jax.Array:
        """Picks the soft-max posteriors of these classes in each cell."""
        posteriors = jax.nn.softmax(maps)
        classes = extras["classes"][:, None, None]
        ratings = jnp.take_along_axis(posteriors, classes, axis=-1)
        cells = self.cells(layers, sizes)
        return ratings if cells is None else fill_outside(ratings, cells, -1.0)

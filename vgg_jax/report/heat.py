"""Where in an image a network sees a class: its dense score map, laid over the image.

For VGG the map is that of section 3.2. For Network in Network it is the class
activation map of the last block, and nothing is different here.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from scipy import ndimage

from vgg_jax.inference.forward import Network
from vgg_jax.inference.forward import ScoreMap as ScoreMapHead
from vgg_jax.inference.tiling import TILE, tiled_map
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Layer, output_size, receptive_fields
from vgg_jax.preprocessing import Normalization
from vgg_jax.report import style

CELLS = 7  # a class score map to look at has at least this many cells a side
STRENGTH = 0.62  # of the map's colors over the image


@dataclasses.dataclass(frozen=True)
class ScoreMap:
    """One class's scores over an image.

    Args:
        image: uint8 [H, W, C], what the network was given.
        scores: float32 [h, w], before soft-max.
        extent: left, right, bottom and top edge of the map in pixels of `image`, whose
            first pixel has its center at 0; a cell lies around the center of what it
            sees.
    """

    image: np.ndarray
    scores: np.ndarray
    extent: tuple[float, float, float, float]


def map_side(layers: tuple[Layer, ...], crop: int) -> int:
    """An image side, in pixels, for a map of at least `CELLS` cells.

    The training crop or one of the next multiples of half of it; preferably one whose
    last cell has its center inside the image.
    """

    def inside(side: int) -> bool:
        begin, end = map_interval(layers, side)
        return end - (end - begin) / (2 * output_size(layers, side)) <= side - 1

    sides = (crop * halves // 2 for halves in itertools.count(2))
    enough = (side for side in sides if output_size(layers, side) >= CELLS)
    first = list(itertools.islice(enough, 4))
    return next(filter(inside, first), first[0])


def map_interval(layers: tuple[Layer, ...], side: int) -> tuple[float, float]:
    """Where a map's first cell begins and its last one ends, in pixels of the image."""
    field = receptive_fields(layers)[-1]
    begin = field.center - field.stride / 2
    return begin, begin + output_size(layers, side) * field.stride


def score_map(
    model: ConvNet,
    image: np.ndarray,
    label: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> ScoreMap:
    """The scores of class `label` over an image uint8 [H, W, C] with pixels 0-255.

    Each new shape compiles once; an image larger than a tile goes through in tiles, in
    bounded memory.

    Raises:
        ValueError: the image is too small for the network.
    """
    network = Network.from_model(model, Normalization(mean, std))
    height, width = image.shape[:2]
    scores: jax.Array | np.ndarray
    if height * width > TILE**2:
        scores = tiled_map(network, ScoreMapHead(), image)
    else:
        scores = network.run(ScoreMapHead(), image[None])[0]
    top, bottom = map_interval(model.layers, height)
    left, right = map_interval(model.layers, width)
    return ScoreMap(image, np.asarray(scores)[..., label], (left, right, bottom, top))


def overlay(found: ScoreMap) -> np.ndarray:
    """The map in colors over the image in gray: uint8 RGB [H, W, 3].

    Colors go from the lowest score of this map to its highest, bilinear between the
    cells' centers.
    """
    height, width = found.image.shape[:2]
    rows, columns = found.scores.shape
    left, right, bottom, top = found.extent
    x = (np.arange(width) - left) * columns / (right - left) - 0.5
    y = (np.arange(height) - top) * rows / (bottom - top) - 0.5
    low, high = found.scores.min(), found.scores.max()
    heat = ndimage.map_coordinates(
        (found.scores - low) / (high - low if high > low else 1),
        np.meshgrid(y, x, indexing="ij"),
        order=1,
        mode="nearest",
    )
    # The image in few grays leaves the colors as the legend has them.
    gray = 50 + 0.65 * found.image.mean(axis=-1, keepdims=True)
    colors = 255 * style.HEAT(heat)[..., :3]
    return np.rint(STRENGTH * colors + (1 - STRENGTH) * gray).astype(np.uint8)

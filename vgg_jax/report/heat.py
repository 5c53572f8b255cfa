"""Heat maps: where in an image a network sees a class.

A network whose map of class scores (section 3.2 of arXiv:1409.1556) is fine enough
near its training scale shows that map; for Network in Network it is the class
activation map of the last block. The map of another network, such as one trained on
32x32 pixels, is a single cell there, and far above that scale the network sees what it
never learned. For such a network one place of the image after another is hidden, and
the map shows how much evidence that takes away.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from scipy import ndimage
from scipy.special import logsumexp

from vgg_jax.data.transforms import rescale
from vgg_jax.inference.forward import Network, ScoreMap
from vgg_jax.inference.tiling import TILE, tiled_map
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Layer, output_size, receptive_fields
from vgg_jax.preprocessing import Preprocessing

HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#14213d", "#4c3a86", "#c2416b", "#f59e4c", "#fff3c4"]
)
CELLS = 7  # a class score map to look at has at least this many cells a side
NEAR = 2  # and its image at most so many training crops (the paper's S: up to 2.3)
PLACES = 12  # hidden one by one along a training crop,
MOST_PLACES = 36  # and at most along the side of an image
BATCH = 49  # images that go together: 12 x 12 places and the whole are three batches
SHOWN = 224  # pixels; an image to look at has at least such a short side
STRENGTH = 0.62  # of the map's colors over the image


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """One class's evidence over an image.

    Args:
        image: uint8 [H, W, C], what the network was given.
        scores: float32 [h, w]: the class's scores before soft-max; or, where places
            were hidden, how far that lowers the log-odds of the class.
        extent: left, right, bottom and top edge of the map in pixels of `image`, whose
            first pixel has its center at 0; a cell lies around the center of what it
            sees.
        square: side in pixels of the square that hid each place; 0 for a map of scores.
    """

    image: np.ndarray
    scores: np.ndarray
    extent: tuple[float, float, float, float]
    square: int = 0


def map_side(layers: tuple[Layer, ...], crop: int) -> int | None:
    """The image side, in pixels, for a map of at least `CELLS` cells a side.

    The side is the training crop or one of the next multiples of half of it, up to
    `NEAR` crops; preferably one whose last cell has its center inside the image. None
    where the maps of all of them are coarser.
    """

    def ends_inside(side: int) -> bool:
        begin, end = map_interval(layers, side)
        return end - (end - begin) / (2 * output_size(layers, side)) <= side - 1

    sides = (crop * halves // 2 for halves in range(2, 2 * NEAR + 1))
    fine = [side for side in sides if output_size(layers, side) >= CELLS]
    return next(filter(ends_inside, fine), fine[0] if fine else None)


def map_interval(layers: tuple[Layer, ...], side: int) -> tuple[float, float]:
    """Where a map's first cell begins and its last one ends, in pixels of the image."""
    field = receptive_fields(layers)[-1]
    begin = field.center - field.stride / 2
    return begin, begin + output_size(layers, side) * field.stride


def heat_map(
    model: ConvNet,
    image: np.ndarray,
    label: int,
    crop: int,
    preprocessing: Preprocessing,
) -> HeatMap:
    """Where the network sees class `label` in an image uint8 [H, W, C] of any size.

    The network is given the image near the scale that it was trained at: `score_map`
    at the side of `map_side`, or else `occlusion_map` with the training crop as the
    short side. Where images must have one size, both are at the training crop.
    """
    side = map_side(model.layers, crop)
    if preprocessing.image_size is not None:
        is_fine = output_size(model.layers, crop) >= CELLS
        side = crop if is_fine else None
    if side is None:
        return occlusion_map(model, rescale(image, crop), label, crop, preprocessing)
    return score_map(model, rescale(image, side), label, preprocessing)


def score_map(
    model: ConvNet,
    image: np.ndarray,
    label: int,
    preprocessing: Preprocessing,
) -> HeatMap:
    """The scores of class `label` over an image uint8 [H, W, C] with pixels 0-255.

    Each new shape compiles once; an image larger than a tile goes through in tiles, in
    bounded memory.

    Raises:
        ValueError: the image is too small for the network.
    """
    network = Network.from_model(model, preprocessing)
    height, width = image.shape[:2]
    scores: jax.Array | np.ndarray
    if height * width > TILE**2:
        scores = tiled_map(network, ScoreMap(), image)
    else:
        scores = network.run(ScoreMap(), image[None])[0]
    top, bottom = map_interval(model.layers, height)
    left, right = map_interval(model.layers, width)
    return HeatMap(image, np.asarray(scores)[..., label], (left, right, bottom, top))


def occlusion_map(
    model: ConvNet,
    image: np.ndarray,
    label: int,
    crop: int,
    preprocessing: Preprocessing,
) -> HeatMap:
    """How much of the evidence for class `label` each place of an image carries.

    A square, a quarter of the training crop wide and of the median color of the
    image's border, hides one place after another; the map is how far the class's
    log-odds fall (occlusion, section 4.2 of arXiv:1311.2901). The image, uint8
    [H, W, C], is as large as those that the network was trained on. Each new shape
    compiles once.

    Raises:
        ValueError: the image is too small for the network.
    """
    network = Network.from_model(model, preprocessing)
    square = max(1, crop // 4)

    def log_odds(images: np.ndarray) -> np.ndarray:
        score_maps = np.asarray(network.run(ScoreMap(), images), np.float64)
        scores = score_maps.mean(axis=(1, 2))
        others = np.delete(scores, label, axis=1)
        return scores[:, label] - logsumexp(others, axis=1)

    height, width = image.shape[:2]
    rows, columns = (
        min(MOST_PLACES, max(1, PLACES * side // crop)) for side in (height, width)
    )
    images = itertools.chain([image], _with_hidden_places(image, rows, columns, square))
    odds = []
    while batch := list(itertools.islice(images, BATCH)):
        filled = batch + [image] * (BATCH - len(batch))  # one shape, one program
        odds.append(log_odds(np.stack(filled))[: len(batch)])
    whole, hidden = np.split(np.concatenate(odds), [1])
    return HeatMap(
        image,
        (whole - hidden).reshape(rows, columns).astype(np.float32),
        (-0.5, width - 0.5, height - 0.5, -0.5),
        square,
    )


def _with_hidden_places(
    image: np.ndarray, rows: int, columns: int, square: int
) -> Iterator[np.ndarray]:
    """Copies of an image, each with a square over the center of another grid cell."""
    height, width = image.shape[:2]
    edges = (image[0], image[-1], image[:, 0], image[:, -1])
    color = np.median(np.concatenate(edges), axis=0).astype(np.uint8)
    for row, column in np.ndindex(rows, columns):
        top = round((row + 0.5) * height / rows - square / 2)
        left = round((column + 0.5) * width / columns - square / 2)
        copy = image.copy()
        copy[max(0, top) : top + square, max(0, left) : left + square] = color
        yield copy


def explain(heat: HeatMap, crop: int) -> str:
    """A sentence about what a heat map shows."""
    height, width = heat.image.shape[:2]
    size = f"{width} x {height} pixels"
    if heat.square:
        return (
            f"Bright is where hiding a square of {heat.square} pixels lowers the "
            f"log-odds of the predicted class most; the network sees {size}, the "
            "scale that it was trained at."
        )
    rows, columns = heat.scores.shape
    return (
        "Bright is where the predicted class's score is highest, in "
        f"{columns} x {rows} cells; the network sees {size}, "
        f"{min(height, width) / crop:g} times its training crop."
    )


def enlarge(heat: HeatMap) -> HeatMap:
    """A heat map over its image at a size to look at: `SHOWN` pixels or more."""
    factor = SHOWN / min(heat.image.shape[:2])
    if factor <= 1:
        return heat
    left, right, bottom, top = ((edge + 0.5) * factor - 0.5 for edge in heat.extent)
    return dataclasses.replace(
        heat, image=rescale(heat.image, SHOWN), extent=(left, right, bottom, top)
    )


def overlay(heat: HeatMap) -> np.ndarray:
    """Lays the map in colors over the image in gray: uint8 RGB [H, W, 3].

    Colors go from the lowest score of this map to its highest, bilinear between the
    cells' centers.
    """
    height, width = heat.image.shape[:2]
    rows, columns = heat.scores.shape
    left, right, bottom, top = heat.extent
    x = (np.arange(width) - left) * columns / (right - left) - 0.5
    y = (np.arange(height) - top) * rows / (bottom - top) - 0.5
    low, high = heat.scores.min(), heat.scores.max()
    brightness = ndimage.map_coordinates(
        (heat.scores - low) / (high - low if high > low else 1),
        np.meshgrid(y, x, indexing="ij"),
        order=1,
        mode="nearest",
    )
    # The image in few grays leaves the colors as the legend has them.
    gray = 50 + 0.65 * heat.image.mean(axis=-1, keepdims=True)
    colors = 255 * HEAT(brightness)[..., :3]
    return np.rint(STRENGTH * colors + (1 - STRENGTH) * gray).astype(np.uint8)

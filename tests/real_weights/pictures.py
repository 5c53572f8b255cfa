"""Pictures of what a VGG has learned, for docs."""

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization

PATCHES = 8  # of a channel
CHANNELS = 5  # of a layer
SIDE = 64  # of a patch in the picture, in pixels
LAYERS = ("relu3_3", "relu5_3")


def draw_filters(kernel: np.ndarray, path: Path) -> None:
    """Draws the filters of a first convolution, [h, w, 3, N] in RGB.

    Gray is zero; each filter is scaled by its own largest value.
    """
    filters = kernel.transpose(3, 0, 1, 2)
    filters = 0.5 + filters / (2 * np.abs(filters).max(axis=(1, 2, 3), keepdims=True))
    side = 30
    tiles = [np.kron(tile, np.ones((side // 3, side // 3, 1))) for tile in filters]
    plt.imsave(path, _mosaic(tiles, columns=16))


def draw_patches(
    model: ConvNet,
    normalization: Normalization,
    photographs: Sequence[np.ndarray],
    path: Path,
) -> None:
    """Draws where some channels respond most: a row of patches for each.

    A patch is what the cell of the map sees of the photograph, its receptive field. The
    channels are those whose strongest responses differ most from their usual ones; no
    two of them show the same place first.
    """
    run = jax.jit(lambda images: model.features(normalization(images), LAYERS))
    all_maps = [
        {name: np.asarray(array[0]) for name, array in run(image[None]).items()}
        for image in photographs
    ]
    rows = []
    for name in LAYERS:
        info = model.feature_info[name]
        maps = [
            _inside(maps[name], image, info.stride, info.receptive_field)
            for maps, image in zip(all_maps, photographs, strict=True)
        ]
        cells = np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])
        mean, largest = np.nanmean(cells, axis=0), np.nanmax(cells, axis=0)
        shown: set[tuple[int, int, int]] = set()
        for channel in np.argsort(-largest / (mean + 1e-3 * largest.max())):
            strongest = _strongest(
                [m[:, :, channel] for m in maps], info.receptive_field // info.stride
            )
            i, y, x = strongest[0]
            place = (i, y // 8, x // 8)
            if place in shown:
                continue
            shown.add(place)
            rows += [
                _patch(photographs[i], y, x, info.stride, info.receptive_field)
                for i, y, x in strongest
            ]
            if len(shown) == CHANNELS:
                break
    plt.imsave(path, _mosaic(rows, columns=PATCHES) / 255)


def _strongest(maps: Sequence[np.ndarray], reach: int) -> list[tuple[int, int, int]]:
    """Returns the cells with the largest values: the photograph, row and column.

    No two of a photograph are nearer to each other than half of `reach` cells.
    """
    maps = [array.copy() for array in maps]
    cells = []
    near = max(1, reach // 2)
    for _ in range(PATCHES):
        i = int(np.argmax([np.nanmax(array) for array in maps]))
        y, x = map(int, np.unravel_index(np.nanargmax(maps[i]), maps[i].shape))
        cells.append((i, y, x))
        around = maps[i][
            max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1
        ]
        around[np.isfinite(around)] = -1
    return cells


def _inside(
    array: np.ndarray, image: np.ndarray, stride: int, field: int
) -> np.ndarray:
    """Makes cells that see more than the photograph not numbers, in a map [h, w, C]."""
    array = array.copy()
    for axis in (0, 1):
        first = _first_pixel(np.arange(array.shape[axis]), stride, field)
        is_outside = (first < 0) | (first + field > image.shape[axis])
        array.swapaxes(0, axis)[is_outside] = np.nan
    return array


def _first_pixel(cell: np.ndarray, stride: int, field: int) -> np.ndarray:
    """Returns the first row or column that cells see."""
    return np.round((cell + 0.5) * stride - field / 2).astype(int)


def _patch(image: np.ndarray, y: int, x: int, stride: int, field: int) -> np.ndarray:
    """Cuts out what a cell sees, in the size of the picture."""
    top, left = _first_pixel(np.array((y, x)), stride, field)
    patch = image[top : top + field, left : left + field]
    places = ((np.arange(SIDE) + 0.5) * field / SIDE).astype(int)
    return patch[places][:, places].astype(float)


def _mosaic(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Puts tiles of one size side by side on white, with gaps of two pixels."""
    white = max(1.0, 255.0 * (max(tile.max() for tile in tiles) > 1))
    tiles = [
        np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=white) for tile in tiles
    ]
    rows = [
        np.concatenate(tiles[i : i + columns], axis=1)
        for i in range(0, len(tiles), columns)
    ]
    return np.concatenate(rows)

"""Makes maps of large images tile by tile, in bounded memory.

A tile is a window of the image of one fixed shape. It starts at a multiple of the
network's stride, where every layer's cells fall on those of the whole image; only cells
whose whole receptive field is in the tile, or ends at the image's own border, are kept.
So the map is that of the whole image, whose border alone is padded with zeros.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.console import progress_bar
from vgg_jax.inference.forward import (
    Extras,
    MapHead,
    MapOf,
    Network,
    ScoreMap,
    mean_of,
    reduce_map,
    validate_image,
)
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Layer, check_size, output_size, receptive_fields
from vgg_jax.preprocessing import Normalization

TILE = 1024  # pixels; VGG-16 computes 2.6 times what it keeps at 1024, 1.5 at 2048


@dataclasses.dataclass(frozen=True)
class Span:
    """One tile along one side of an image, and the cells of the map that it gives.

    Args:
        pixels: the tile's pixels in the image; it may end beyond the image.
        cells: the cells that it gives in the whole map.
        own_cells: the same cells in the tile's map.
    """

    pixels: slice
    cells: slice
    own_cells: slice


@dataclasses.dataclass(frozen=True)
class TilingMemory:
    """What a tiled run needs.

    Args:
        tiles: how many tiles there are.
        device: bytes on the device.
        host: bytes on the host, beside the image.
    """

    tiles: int
    device: int
    host: int

    def __str__(self) -> str:
        return (
            f"{self.tiles} tiles, {self.device / 2**20:,.0f} MiB on the device, "
            f"{self.host / 2**20:,.0f} MiB on the host"
        )


def spans(layers: Sequence[Layer], side: int, tile: int) -> list[Span]:
    """Returns the tiles along a side of an image, in pixels, that give each cell once.

    Raises:
        ValueError: the tile is too small to hold a cell away from the border.
    """
    layers = tuple(layers)
    field = receptive_fields(layers)[-1]
    # In a tile away from the border, its cells [first, end) see nothing beyond it.
    first = -(field.start // field.stride)
    end = (tile - field.size - field.start) // field.stride + 1
    if side > tile and end <= first:
        needed = first * field.stride + field.start + field.size
        raise ValueError(
            f"expected tiles of at least {needed} pixels, with room for a cell that "
            f"sees {field.size} pixels, got {tile}"
        )
    cells = output_size(layers, side)
    tiles: list[Span] = []
    kept = origin = 0
    while kept < cells:
        start = origin * field.stride
        last = cells if start + tile >= side else origin + end
        tiles.append(
            Span(
                pixels=slice(start, start + tile),
                cells=slice(kept, last),
                own_cells=slice(kept - origin, last - origin),
            )
        )
        kept, origin = last, last - first
    return tiles


def memory_estimate(
    model: ConvNet,
    image_size: tuple[int, int],
    *,
    tile: int = TILE,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> TilingMemory:
    """Estimates what `tiled_score_map` needs at its peak, from its compiled program.

    On the device: the parameters, the tile, its score map and the program's workspace.
    On the host: the whole map, the tile and its score map. Compiles what the run then
    uses, and computes nothing. On CPU the workspace counts two and a half times: XLA's
    convolutions take memory there that it does not declare, 1.1 times what it does at
    the most that was measured.

    Args:
        model: a classifier.
        image_size: height and width, in pixels.
        tile: side of a tile in pixels.
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.

    Raises:
        ValueError: the image is too small for the network, or a tile is too small for
            its receptive field.
        RuntimeError: the device does not say how much memory a program needs.
    """
    check_size(model.layers, *image_size)
    rows, columns = (spans(model.layers, side, tile) for side in image_size)
    shape = (1, tile, tile, model.in_channels)
    network = Network.from_model(model, Normalization(mean, std))
    compiled = network.lower(
        ScoreMap(),
        jax.ShapeDtypeStruct(shape, np.uint8),
        jax.ShapeDtypeStruct((1, 2), np.int32),
    ).compile()
    used = compiled.memory_analysis()
    if used is None:
        raise RuntimeError("this device does not say how much memory a program needs")
    on_cpu = jax.default_backend() == "cpu"
    workspace = used.temp_size_in_bytes * (5 if on_cpu else 2) // 2
    scores = 4 * rows[-1].cells.stop * columns[-1].cells.stop * model.num_classes
    return TilingMemory(
        tiles=len(rows) * len(columns),
        device=used.argument_size_in_bytes + used.output_size_in_bytes + workspace,
        host=scores + used.output_size_in_bytes + int(np.prod(shape)),
    )


def tiled_score_map(
    model: ConvNet,
    image: np.ndarray,
    *,
    tile: int = TILE,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
    progress: str | None = None,
) -> np.ndarray:
    """Makes the class score map of one image of any size, tile by tile.

    uint8 [H, W, C] -> float32 [h, w, num_classes]. The map equals that of
    `model.score_map` to float rounding; one compiled program serves all images.
    `memory_estimate` says how much memory a call needs.

    Args:
        model: a classifier.
        image: pixels 0-255, uint8; a `numpy.memmap` is read tile by tile.
        tile: side of a tile in pixels. Larger ones repeat less and need more memory.
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.
        progress: the name of the work in a progress line on stderr; None for none.

    Raises:
        ValueError: the image is another kind of array or too small for the network, or
            a tile is too small for its receptive field.
    """
    network = Network.from_model(model, Normalization(mean, std))
    return tiled_map(network, ScoreMap(), image, tile=tile, progress=progress)


def tiled_map(
    network: Network,
    head: MapHead,
    image: np.ndarray,
    *,
    tile: int = TILE,
    progress: str | None = None,
) -> np.ndarray:
    """Makes the map of a head for one image of any size, tile by tile.

    uint8 [H, W, C] -> float32 [h, w, features].

    Args:
        network: the network.
        head: the head, whose first step makes the map.
        image: pixels 0-255; a `numpy.memmap` is read tile by tile.
        tile: side of a tile in pixels.
        progress: the name of the work in a progress line on stderr; None for none.

    Raises:
        ValueError: the image is another kind of array or too small for the network, or
            a tile is too small for its receptive field.
    """
    validate_image(image, network.channels)
    height, width, channels = image.shape
    layers = head.layers(network.layers)
    check_size(layers, height, width)
    rows, columns = (spans(layers, side, tile) for side in (height, width))
    cells: np.ndarray | None = None
    tiles = list(itertools.product(rows, columns))
    with progress_bar(progress, len(tiles), unit="tiles") as bar:
        for row, column in tiles:
            window = image[row.pixels, column.pixels]
            pixels = np.zeros((1, tile, tile, channels), np.uint8)
            pixels[0, : window.shape[0], : window.shape[1]] = window
            size = np.asarray([window.shape[:2]], np.int32)
            tile_map = np.asarray(network.run(MapOf(head=head), pixels, size))[0]
            if cells is None:
                shape = (rows[-1].cells.stop, columns[-1].cells.stop)
                cells = np.empty((*shape, tile_map.shape[-1]), np.float32)
            own = tile_map[row.own_cells, column.own_cells]
            cells[row.cells, column.cells] = own
            bar.update(1)
    assert cells is not None
    return cells


def run_tiled(
    network: Network, head: MapHead, image: np.ndarray, extras: Extras
) -> Any:
    """Runs a head on one image of any shape, tile by tile.

    The result is that of `Network.run`. No shape of an image needs a program of its
    own: tiles have one shape, and a map is padded to sides that are powers of two
    before it is reduced.

    Args:
        network: the network.
        head: what is made of the image's map.
        image: uint8 [H, W, C].
        extras: the arrays that the head names, one row each.
    """
    size = np.asarray([image.shape[:2]], np.int32)
    # The image and its mirror image are run one after the other.
    one_view = dataclasses.replace(head, flip=False)

    def run(image: np.ndarray) -> Any:
        cells = tiled_map(network, head, image)
        rows, columns = (1 << (side - 1).bit_length() for side in cells.shape[:2])
        padded = np.zeros((1, rows, columns, cells.shape[-1]), np.float32)
        padded[0, : cells.shape[0], : cells.shape[1]] = cells
        arrays: Any = (padded, size, extras)
        return reduce_map(*arrays, head=one_view, layers=network.layers)

    return mean_of(run(image), run(image[:, ::-1])) if head.flip else run(image)

"""Class score maps of large images, tile by tile in bounded memory.

A tile is a window of the image of one fixed shape. It starts at a multiple of the
network's stride, where every layer's cells fall on those of the whole image; only cells
whose whole receptive field is in the tile, or ends at the image's own border, are kept.
So the map is that of the whole image, whose border alone is padded with zeros.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.console import progress_bar
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import check_size, output_size, smallest_size
from vgg_jax.models.measure import receptive_field
from vgg_jax.preprocessing import Normalization

TILE = 1024  # pixels; VGG-16 computes 2.6 times what it keeps at 1024, 1.5 at 2048


@dataclasses.dataclass(frozen=True)
class Span:
    """One tile along one side of the image, and the cells of the map that it gives."""

    pixels: slice  # of the image; may end beyond it
    cells: slice  # of the whole map
    own_cells: slice  # the same cells in the tile's map


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a tiled run needs: on the device, and on the host beside the image."""

    tiles: int
    device: int
    host: int

    def __str__(self) -> str:
        return (
            f"{self.tiles} tiles, {self.device / 2**20:,.0f} MiB on the device, "
            f"{self.host / 2**20:,.0f} MiB on the host"
        )


def spans(model: ConvNet, side: int, tile: int) -> list[Span]:
    """The tiles along a side of an image, in pixels, that give each cell once.

    Raises:
        ValueError: the tile is too small to hold a cell away from the border.
    """
    top = receptive_field(model, smallest_size(model.layers))[-1]
    # In a tile away from the border, its cells [first, end) see nothing beyond it.
    first = -(top.start // top.jump)
    end = (tile - top.receptive_field - top.start) // top.jump + 1
    if side > tile and end <= first:
        needed = first * top.jump + top.start + top.receptive_field
        raise ValueError(
            f"expected tiles of at least {needed} pixels, with room for a cell that "
            f"sees {top.receptive_field} pixels, got {tile}"
        )
    cells = output_size(model.layers, side)
    found: list[Span] = []
    kept = origin = 0
    while kept < cells:
        start = origin * top.jump
        last = cells if start + tile >= side else origin + end
        found.append(
            Span(
                pixels=slice(start, start + tile),
                cells=slice(kept, last),
                own_cells=slice(kept - origin, last - origin),
            )
        )
        kept, origin = last, last - first
    return found


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def _tile_scores(
    state: nnx.State,
    pixels: jax.Array,
    sizes: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    images = Normalization(mean, std)(pixels)
    return nnx.merge(graphdef, state).score_map(images, sizes=sizes)


def memory_estimate(
    model: ConvNet,
    image_size: tuple[int, int],
    *,
    tile: int = TILE,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Memory:
    """What `tiled_score_map` will need at its peak, from its compiled program.

    On the device: the parameters, the tile, its score map and the program's workspace.
    On the host: the whole map, the tile and its score map. Compiles what the run then
    uses, and computes nothing. On CPU the workspace counts two and a half times: XLA's
    convolutions take memory there that it does not declare, 1.1 times what it does at
    the most that was measured.

    Args:
        model: a classifier.
        image_size: height and width, in pixels.
        tile, mean, std: as `tiled_score_map`.

    Raises:
        ValueError: as `tiled_score_map`.
    """
    check_size(model.layers, *image_size)
    rows, columns = (spans(model, side, tile) for side in image_size)
    graphdef, state = nnx.split(model)
    shape = (1, tile, tile, model.in_channels)
    compiled = _tile_scores.lower(
        state,
        jax.ShapeDtypeStruct(shape, np.uint8),
        jax.ShapeDtypeStruct((1, 2), np.int32),
        graphdef=graphdef,
        mean=tuple(mean),
        std=tuple(std),
    ).compile()
    used = compiled.memory_analysis()
    if used is None:
        raise RuntimeError("this device does not say how much memory a program needs")
    on_cpu = jax.default_backend() == "cpu"
    workspace = used.temp_size_in_bytes * (5 if on_cpu else 2) // 2
    scores = 4 * rows[-1].cells.stop * columns[-1].cells.stop * model.num_classes
    return Memory(
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
    """`score_map` of one image of any size: [H, W, C] -> float32 [h, w, num_classes].

    Equal to the untiled map to float rounding; one compiled program serves all images.
    `memory_estimate` says what it needs.

    Args:
        model: a classifier.
        image: pixels 0-255, uint8; a `numpy.memmap` is read tile by tile.
        tile: side of a tile in pixels. Larger ones repeat less and need more memory.
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.
        progress: the name of the work in a progress line on stderr; None for none.

    Raises:
        ValueError: another kind of array, an image too small for the network, or a tile
            too small for its receptive field.
    """
    channels = model.in_channels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(
            f"expected an image uint8 [H, W, {channels}], got {image.dtype} "
            f"{list(image.shape)}"
        )
    height, width, _ = image.shape
    check_size(model.layers, height, width)
    rows, columns = (spans(model, side, tile) for side in (height, width))
    graphdef, state = nnx.split(model)
    cells = rows[-1].cells.stop, columns[-1].cells.stop
    found = np.empty((*cells, model.num_classes or 0), np.float32)
    line = progress_bar(progress, len(rows) * len(columns), unit="tiles")
    for row, column in itertools.product(rows, columns):
        window = image[row.pixels, column.pixels]
        pixels = np.zeros((1, tile, tile, channels), np.uint8)
        pixels[0, : window.shape[0], : window.shape[1]] = window
        scores = _tile_scores(
            state,
            pixels,
            np.asarray([window.shape[:2]], np.int32),
            graphdef=graphdef,
            mean=tuple(mean),
            std=tuple(std),
        )
        own = np.asarray(scores)[0, row.own_cells, column.own_cells]
        found[row.cells, column.cells] = own
        line.update(1)
    line.close()
    return found

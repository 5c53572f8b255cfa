"""This module pads maps, NHWC."""

import jax
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]  # rows (top, bottom), columns


def pad(
    x: jax.Array, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0
) -> jax.Array:
    """Adds rows and columns to a map, or takes them away where negative.

    Args:
        x: [N, H, W, C].
        rows: how many above the map, and below it.
        columns: how many on the left, and on the right.
        value: of the new cells.
    """
    config = ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))
    return lax.pad(x, x.dtype.type(value), config)

"""This module has Winograd's convolution by kernels of 3x3 pixels, in plain JAX.

It is F(2x2, 3x3) of Lavin and Gray (arXiv:1509.09308): the output is made in tiles of
2x2 pixels. The 4x4 pixels that a tile depends on, and the kernel, are each transformed
to 4x4 numbers, of which products alone are summed over the channels; a last transform
makes the tile. That is 16 products where 36 would be, and some sums. All transforms
are by the matrices below, along rows and columns. In float32 the result is as exact
as that of XLA's convolution, to a few units in the last place of its largest numbers.

Of the 4x4 numbers each column is an array, [4, tiles, channels], and its products are
one batch of four: XLA makes such an array in one loop and in a fraction of the time
that it takes to compile sixteen.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vgg_jax.kernels.padding import Pads, pad

TILE = 2  # the side of a tile of output,
SEEN = 4  # and of the input that it depends on

# An output tile is A^T [(G k G^T) * (B^T d B)] A, section 4.1.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B^T
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A^T

Grid = Sequence[Sequence[jax.Array]]  # rows of arrays of one shape


def convolve(x: jax.Array, kernel: jax.Array, padding: Pads) -> jax.Array:
    """Cross-correlates at stride 1: [N, H, W, I] with [3, 3, I, O] -> [N, h, w, O].

    Args:
        x: the input.
        kernel: the kernel.
        padding: pixels of zeros around the input.
    """
    height, width = _output(x.shape, padding)
    inputs = _inputs(x, padding)
    kernels = _transform(_KERNEL, kernel)  # type: ignore[arg-type]
    products = [
        _contract(pixels, weights, (2, 1))
        for pixels, weights in zip(inputs, kernels, strict=True)
    ]
    columns = _combine(_OUTPUT, products)  # of each tile: [4, tiles, O]
    tiles = [jnp.stack(_combine(_OUTPUT, column)) for column in columns]
    down, right = -(-height // TILE), -(-width // TILE)
    shape = (TILE, len(x), down, right, kernel.shape[-1])
    whole = jnp.stack([tile.reshape(shape) for tile in tiles], axis=4)
    # [i, N, tiles down, tiles right, j, O] -> [N, tiles down, i, tiles right, j, O]
    whole = whole.transpose(1, 2, 0, 3, 4, 5)
    whole = whole.reshape(shape[1], TILE * down, TILE * right, shape[4])
    return whole[:, :height, :width]


def kernel_gradient(x: jax.Array, g: jax.Array, padding: Pads) -> jax.Array:
    """Computes the kernel's gradient from the output's: -> [3, 3, I, O].

    Args:
        x: the input of `convolve`, [N, H, W, I].
        g: the gradient of its output, [N, h, w, O].
        padding: pixels of zeros around the input.
    """
    inputs = _inputs(x, padding)
    outputs = _transform(_OUTPUT.T, _pixels(g, TILE, output=g.shape[1:3]))
    products = [
        _contract(pixels, gradients, (1, 1))
        for pixels, gradients in zip(inputs, outputs, strict=True)
    ]
    columns = _combine(_KERNEL.T, products)  # of the kernel: [4, I, O]
    kernel = [jnp.stack(_combine(_KERNEL.T, column)) for column in columns]
    return jnp.stack(kernel, axis=1)


def _inputs(x: jax.Array, padding: Pads) -> list[jax.Array]:
    """Transforms what each tile depends on: the columns, each [4, tiles, I]."""
    (top, _), (left, _) = padding
    output = _output(x.shape, padding)
    return _transform(_INPUT, _pixels(x, SEEN, output=output, before=(top, left)))


def _output(shape: Sequence[int], padding: Pads) -> tuple[int, int]:
    """Returns the height and width of the output of an input NHWC."""
    height, width = (
        n + sum(pads) - 2 for n, pads in zip(shape[1:3], padding, strict=True)
    )
    return height, width


def _pixels(
    x: jax.Array, side: int, *, output: Sequence[int], before: tuple[int, int] = (0, 0)
) -> Grid:
    """Gives the pixels of a window for each tile of the output: [tiles, C] each.

    Args:
        x: NHWC; what windows see outside of it is 0.
        side: the side of a window; the next one begins `TILE` pixels after it.
        output: the height and width of the output.
        before: how many rows above x, and columns left of it, the first windows begin.
    """
    tiles = [-(-n // TILE) for n in output]
    above_and_below, sides = (
        (first, side + TILE * (count - 1) - first - n)
        for n, first, count in zip(x.shape[1:3], before, tiles, strict=True)
    )
    x = pad(x, above_and_below, sides)
    rows, columns = (TILE * (count - 1) + 1 for count in tiles)

    def pixel(i: int, j: int) -> jax.Array:
        ends = (len(x), i + rows, j + columns, x.shape[3])
        pixels = lax.slice(x, (0, i, j, 0), ends, (1, TILE, TILE, 1))
        return pixels.reshape(-1, x.shape[3])

    return [[pixel(i, j) for j in range(side)] for i in range(side)]


def _transform(matrix: np.ndarray, grid: Grid) -> list[jax.Array]:
    """Computes M X M^T of a grid X: its columns, each [rows, ...]."""
    rows = [_combine(matrix, row) for row in grid]
    columns = zip(*rows, strict=True)
    return [jnp.stack(_combine(matrix, column)) for column in columns]


def _combine(
    matrix: np.ndarray, arrays: Sequence[jax.Array] | jax.Array
) -> list[jax.Array]:
    """Computes the sums of arrays that the rows of a matrix weigh."""
    return [
        functools.reduce(
            jnp.add,
            (
                array * array.dtype.type(weight)
                for array, weight in zip(arrays, row, strict=True)
                if weight
            ),
        )
        for row in matrix
    ]


def _contract(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies matrices and sums over an axis of each; axis 0 counts the pairs."""
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((0,), (0,))))

"""This module has max pooling whose gradient is fast on CPU and on GPUs.

XLA's gradient scatters: on CPU by a slow loop; on GPUs from arrays of the places
of the largest values, by adding to single numbers of an array of zeros. On these
platforms it compares instead: each window numbers the pixel that it chose, and each
pixel takes the gradient of the windows that have its number. Values, gradients and
their ties are those of `jax.lax` everywhere, but for gradients of windows that hold a
NaN.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vgg_jax.kernels.padding import Pads, pad
from vgg_jax.kernels.platforms import can_choose, choose, once
from vgg_jax.kernels.trilinear import derivative

Index = TypeVar("Index", int, np.ndarray)


def max_pool(x: jax.Array, *, window: int, stride: int, padding: Pads) -> jax.Array:
    """Takes the largest value of each window: [N, H, W, C] -> [N, h, w, C].

    Pixels outside the map count as -inf. A window's gradient goes to its first largest
    value in row-major order.
    """
    pool = _max_pool if can_choose(x) else _plain_max_pool
    return pool(x, _Windows(window, stride, padding))


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The windows of a max pool, and the form <the chosen values of v, g>.

    Its arrays are x, which chooses a pixel in each window; v, of which those pixels are
    taken; and g, the output's gradient. A small change of x does not change the choice.
    """

    side: int
    stride: int
    padding: Pads
    is_linear = (False, True, True)

    def shape(
        self, wanted: int, first: Sequence[int], second: Sequence[int]
    ) -> tuple[int, ...]:
        """Returns a shape: v has that of x, and g has a cell for each window."""
        if wanted == 1:
            return tuple(first)
        n, height, width, channels = first
        return (n, *self.output((height, width)), channels)

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the number of windows along rows and along columns."""
        rows, columns = (
            (n + sum(pads) - self.side) // self.stride + 1
            for n, pads in zip(size, self.padding, strict=True)
        )
        return rows, columns

    @property
    def overlap(self) -> int:
        """The number of windows in a row that may hold the same pixel."""
        return -(-self.side // self.stride)

    def number(self, a: Index, b: Index) -> Index:
        """Numbers the pixel (a, b) of a window, in rows of `overlap` strides."""
        return a * self.overlap * self.stride + b

    def derivative(self, wanted: int, x: jax.Array, given: jax.Array) -> jax.Array:
        """Computes the gradient of x from g, or the output's change from that of x."""

        def plain(x: jax.Array, given: jax.Array) -> jax.Array:
            pool = functools.partial(_plain_max_pool, windows=self)
            if wanted == 1:
                return jax.vjp(pool, x)[1](given)[0]
            return jax.jvp(pool, (x,), (given,))[1]

        form = _max_pool_gradient if wanted == 1 else _max_pool_change
        # A GPU waits for its memory; on CPU narrow numbers are slower.
        cpu = functools.partial(form, windows=self, integer=np.int32)
        gpu = functools.partial(form, windows=self, integer=np.int8)
        return choose(x, given, plain=plain, cpu=cpu, gpu=gpu)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, windows: _Windows) -> jax.Array:
    return _plain_max_pool(x, windows)


@_max_pool.defjvp
def _max_pool_jvp(
    windows: _Windows, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    return _max_pool(x, windows), derivative(windows, {0: x, 1: change})


def _plain_max_pool(x: jax.Array, windows: _Windows) -> jax.Array:
    side, stride = windows.side, windows.stride
    return lax.reduce_window(
        x,
        x.dtype.type(-np.inf),  # concrete: only then has reduce_window a gradient
        lax.max,
        window_dimensions=(1, side, side, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), *windows.padding, (0, 0)),
    )


def _to_blocks(x: jax.Array, windows: _Windows, value: float) -> jax.Array:
    """Pads a map to blocks of stride x stride pixels, which hold every window.

    A pixel may be in `windows.overlap` windows of a row.
    """
    _, height, width, _ = x.shape
    rows, columns = windows.output((height, width))
    (top, _), (left, _) = windows.padding
    down = (rows + windows.overlap - 1) * windows.stride
    across = (columns + windows.overlap - 1) * windows.stride
    return pad(x, (top, down - height - top), (left, across - width - left), value)


def _pixel(blocks: jax.Array, a: int, b: int, windows: _Windows) -> jax.Array:
    """Takes pixel (a, b) of every window: [N, h, w, C]."""
    rows, columns = (
        side // windows.stride - windows.overlap + 1 for side in blocks.shape[1:3]
    )
    stride = windows.stride
    return blocks[:, a::stride, b::stride][:, :rows, :columns]


def _choice(
    x: jax.Array, windows: _Windows, integer: type[np.signedinteger]
) -> jax.Array:
    """Numbers the pixel that each window chose, as in a window of whole blocks.

    The numbers are of the type `integer`, or of a wider one where they are large.
    """
    last = windows.number(windows.side - 1, windows.side - 1)
    dtype = np.promote_types(integer, np.min_scalar_type(-last - 1))
    blocks = _to_blocks(x, windows, -np.inf)
    largest = jnp.full((), -np.inf, x.dtype)
    choice = jnp.zeros((), dtype)
    for a, b in np.ndindex(windows.side, windows.side):
        pixel = _pixel(blocks, a, b, windows)
        number = dtype.type(windows.number(a, b))
        choice = jnp.where(pixel > largest, number, choice)
        largest = jnp.maximum(pixel, largest)
    return choice


def _max_pool_change(
    x: jax.Array, change: jax.Array, windows: _Windows, integer: type[np.signedinteger]
) -> jax.Array:
    """Gives each window the change of its first largest value."""
    choice, blocks = _choice(x, windows, integer), _to_blocks(change, windows, 0.0)
    total = jnp.zeros((), change.dtype)
    for a, b in np.ndindex(windows.side, windows.side):
        is_chosen = choice == windows.number(a, b)
        total = jnp.where(is_chosen, _pixel(blocks, a, b, windows), total)
    return total


def _max_pool_gradient(
    x: jax.Array, g: jax.Array, windows: _Windows, integer: type[np.signedinteger]
) -> jax.Array:
    """Gives each pixel the gradient of the windows whose first largest value it is."""
    n, height, width, channels = x.shape
    _, rows, columns, _ = g.shape
    (top, _), (left, _) = windows.padding
    stride, overlap = windows.stride, windows.overlap
    down, across = rows + overlap - 1, columns + overlap - 1
    choice = once(_choice(x, windows, integer))
    inside = np.arange(stride)
    total = jnp.zeros((), g.dtype)
    for i, j in np.ndindex(overlap, overlap):
        # The window that starts i blocks above and j blocks left of a pixel's block.
        around = (i, overlap - 1 - i), (j, overlap - 1 - j)
        numbers = windows.number(inside[:, None] + i * stride, inside + j * stride)
        chosen = pad(choice, *around, -1)[:, :, None, :, None]
        gradient = pad(g, *around)[:, :, None, :, None]
        total += jnp.where(chosen == numbers[:, None, :, None], gradient, 0)
    total = total.reshape(n, down * stride, across * stride, channels)
    inside_map = pad(
        total,
        (-top, height + top - down * stride),
        (-left, width + left - across * stride),
    )
    return once(inside_map)

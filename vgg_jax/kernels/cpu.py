"""Convolution and max pooling, with the forms that are fast on CPU.

XLA compiles some of their gradients to slow code on CPU. Each function here is the
plain `jax.lax` one, values and gradients, on every platform; only when the program is
lowered for CPU do the forms below replace it, chosen by shape alone:

- the gradient of a max pool compares instead of scattering;
- the weight gradient of a convolution is matrix products (`_gram`);
- so is a 1x1 convolution, or one on a map of at most 4 pixels or of the kernel's size
  (`_dense`);
- one from and to few channels, on a small map, is a sum of shifted images (`_taps`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

Pads = tuple[tuple[int, int], tuple[int, int]]  # rows (top, bottom), columns

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_SPECS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

_CACHE = 6 * 2**20  # bytes of copies that `_gram` makes at a time, to read them again


def _on_cpu(
    fast: Callable[..., jax.Array], plain: Callable[..., jax.Array], *args: jax.Array
) -> jax.Array:
    """`fast(*args)` in a program for CPU, `plain(*args)` in any other."""
    return lax.platform_dependent(*args, cpu=fast, default=plain)


def _is_auto(*arrays: jax.Array) -> bool:
    """Neither under `jax.shard_map` nor on a mesh of explicit axes, whose types of an
    array the forms here do not keep."""
    return all(
        kind == AxisType.Auto
        for array in arrays
        for kind in jax.typeof(array).sharding.mesh.axis_types
    )


# Convolution


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Of a convolution: sides of the map and of the kernel, strides and padding."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Pads

    @property
    def output(self) -> tuple[int, int]:
        height, width = (
            (n + sum(pads) - k) // s + 1
            for n, k, s, pads in zip(
                self.size, self.kernel, self.strides, self.padding, strict=True
            )
        )
        return height, width

    @property
    def is_whole(self) -> bool:
        """One window, the whole map: a fully-connected layer."""
        return self.kernel == self.size and self.padding == ((0, 0), (0, 0))

    @property
    def is_pixelwise(self) -> bool:
        """One product a pixel."""
        return self.kernel == (1, 1) and self.padding == ((0, 0), (0, 0))

    def has_few(self, channels: int, features: int) -> bool:
        """Few numbers make an output, and few outputs a small map: on a large one XLA
        may keep every shifted image in memory."""
        numbers = _area(self.kernel) * channels
        return numbers <= 27 and channels * features <= 96 and _area(self.size) <= 4096

    @property
    def is_dense(self) -> bool:
        """Every input reaches every output, or on so few pixels that most do; or each
        pixel its own."""
        is_tiny = self.kernel != (1, 1) and _area(self.size) <= 4
        return self.strides == (1, 1) and (
            is_tiny or self.is_whole or self.is_pixelwise
        )


def _area(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, fast on CPU for NHWC images and an HWIO kernel.

    For `nnx.Conv(..., conv_general_dilated=conv_general_dilated)`. What the layers of
    this package do not use (dilation, groups, a precision) goes to `jax.lax` on every
    platform.
    """
    ones = (None, (1, 1))
    covered = (
        lhs.ndim == 4
        and dimension_numbers in (_DIMENSIONS, _SPECS)
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and (lhs_dilation if lhs_dilation is None else tuple(lhs_dilation)) in ones
        and (rhs_dilation if rhs_dilation is None else tuple(rhs_dilation)) in ones
        and feature_group_count == batch_group_count == 1
        and _is_auto(lhs, rhs)
        and precision is preferred_element_type is out_sharding is None
    )
    if not covered:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            lhs.shape[1:3], rhs.shape[:2], window_strides, padding
        )
    rows, columns = padding
    geometry = _Geometry(
        size=(lhs.shape[1], lhs.shape[2]),
        kernel=(rhs.shape[0], rhs.shape[1]),
        strides=(window_strides[0], window_strides[1]),
        padding=((rows[0], rows[1]), (columns[0], columns[1])),
    )
    return _conv(lhs, rhs, geometry)


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Cross-correlation: [N, H, W, I] with [kh, kw, I, O] -> [N, h, w, O].

    `padding` is in pixels of zeros on every side.
    """
    pads = ((padding, padding), (padding, padding))
    return conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    plain = functools.partial(_plain, geometry=geometry)
    if geometry.is_dense:
        return _on_cpu(functools.partial(_dense, geometry=geometry), plain, x, kernel)
    if geometry.strides == (1, 1) and geometry.has_few(*kernel.shape[2:]):
        return _on_cpu(functools.partial(_taps, geometry=geometry), plain, x, kernel)
    return plain(x, kernel)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, geometry: _Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, geometry), (x, kernel)


def _conv_backward(
    geometry: _Geometry, inputs: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def gradient(
        of: Callable[..., jax.Array], wrt: int
    ) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        def vjp(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
            return jax.vjp(lambda *xs: of(*xs, geometry), x, kernel)[1](g)[wrt]

        return vjp

    args = (*inputs, g)
    if geometry.is_dense:
        dx = _on_cpu(gradient(_dense, 0), gradient(_plain, 0), *args)
    else:
        dx = gradient(_plain, 0)(*args)
    if geometry.is_dense and not geometry.is_pixelwise:
        dkernel = _on_cpu(gradient(_dense, 1), gradient(_plain, 1), *args)
    else:
        dkernel = _on_cpu(
            lambda x, kernel, g: _kernel_gradient(x, g, geometry),
            gradient(_plain, 1),
            *args,
        )
    return dx, dkernel


_conv.defvjp(_conv_forward, _conv_backward)


def _plain(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=_DIMENSIONS,
    )


def _taps(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """A sum of shifted images, each times a pixel of the kernel; stride 1."""
    x = _pad(x, *geometry.padding)
    height, width = geometry.output
    taps = (
        x[:, a : a + height, b : b + width, c, None] * kernel[a, b, c]
        for a, b, c in np.ndindex(*kernel.shape[:3])
    )
    return functools.reduce(jnp.add, taps)


def _dense(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """One product with the matrix from every input to every output; stride 1."""
    if geometry.is_pixelwise:
        return x @ kernel[0, 0]
    n, height, width, channels = x.shape
    rows, columns = geometry.output
    (top, _), (left, _) = geometry.padding
    if geometry.is_whole:
        product = x.reshape(n, -1) @ kernel.reshape(-1, kernel.shape[-1])
        return product.reshape(n, 1, 1, -1)
    # Input pixel (i, j) reaches output (u, v) by the kernel's pixel
    # (i - u + top, j - v + left), so all outputs by a window of the reversed kernel,
    # with zeros where that is outside.
    kh, kw, _, features = kernel.shape
    above, before = max(0, height + top - kh), max(0, width + left - kw)
    taps = lax.rev(kernel, (0, 1)).reshape(1, kh, kw, channels * features)
    below, after = max(0, rows - 1 - top), max(0, columns - 1 - left)
    taps = _pad(taps, (above, below), (before, after))[0]
    matrix = []
    for i, j in np.ndindex(height, width):
        a, b = above + kh - 1 - (i + top), before + kw - 1 - (j + left)
        matrix.append(taps[a : a + rows, b : b + columns])
    # [H W, h, w, I, O] -> [H W I, h w O]
    weights = jnp.stack(matrix).reshape(-1, rows, columns, channels, features)
    weights = weights.transpose(0, 3, 1, 2, 4).reshape(height * width * channels, -1)
    return (x.reshape(n, -1) @ weights).reshape(n, rows, columns, features)


def _kernel_gradient(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """The kernel's gradient from the input and the output's gradient."""
    if geometry.strides != (1, 1):
        return _strided(x, g, geometry)
    if x.shape[-1] <= 3:
        return _blocks(x, g, geometry)
    return _gram(x, g, geometry)


def _gram(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """Products of x at every column shift with g at every row shift; stride 1.

    Expanding each side by one axis of the kernel copies less than all shifts of x
    would, and makes both sides of the product wide.
    """
    n, channels, features = x.shape[0], x.shape[-1], g.shape[-1]
    kh, kw = geometry.kernel
    rows, columns = kw * channels, kh * features
    pixels = x.shape[1] * geometry.output[1]  # of an image
    copied = pixels * (rows + columns) * x.dtype.itemsize
    # The bounds are where measurements turn: docs/performance.md. A wider product takes
    # so long that its copies do not matter.
    parts = 1
    if not geometry.is_pixelwise and rows * columns <= 384 * 384 and copied <= _CACHE:
        parts = next((d for d in _divisors(n) if copied * n <= _CACHE * d), 1)
    # A long product with few results keeps two cores busy only as two products.
    groups = 1
    if rows * columns <= 192 * 384 and pixels * n // parts >= 4096:
        groups = 2 if n // parts % 2 == 0 else 1

    # Every `parts`-th image: a batch that devices share stays shared.
    xs = x.reshape(n // parts, parts, *x.shape[1:])
    gs = g.reshape(n // parts, parts, *g.shape[1:])

    def product(i: int | jax.Array) -> jax.Array:
        x, g = (lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (xs, gs))
        x, g = _shifts(x, g, geometry)
        x, g = x.reshape(groups, -1, rows), g.reshape(groups, -1, columns)
        return _contract(x, g, (1, 1), batch=True).sum(0)

    if parts == 1:
        total = product(0)
    else:
        zeros = jnp.zeros((rows, columns), _wide(x.dtype))
        total = lax.fori_loop(0, parts, lambda i, total: total + product(i), zeros)
    total = total.astype(x.dtype).reshape(kw, channels, kh, features)
    return total.transpose(2, 0, 1, 3)


def _shifts(
    x: jax.Array, g: jax.Array, geometry: _Geometry
) -> tuple[jax.Array, jax.Array]:
    """x at every column shift and g at every row shift, along the channels."""
    height, width = x.shape[1], geometry.output[1]
    (top, bottom), columns = geometry.padding
    kh, kw = geometry.kernel
    x = _pad(x, (0, 0), columns)
    x = jnp.concatenate([x[:, :, b : b + width] for b in range(kw)], axis=3)
    g = _pad(g, (kh - 1 - top, kh - 1 - bottom), (0, 0))
    g = jnp.concatenate([g[:, kh - 1 - a :][:, :height] for a in range(kh)], axis=3)
    return x, g


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _blocks(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """One product, of blocks of up to four columns; few channels, stride 1.

    g is not copied: a block of its row is a row of the product. The product has each
    column of the block with each column that the block sees, of which the gradient is
    the sum of some.
    """
    rows, width = geometry.output
    kh, kw = geometry.kernel
    channels, features = x.shape[-1], g.shape[-1]
    columns = next(d for d in (4, 3, 2, 1) if width % d == 0)
    seen = columns + kw - 1
    x = _pad(x, *geometry.padding)
    blocks = [x[:, :, b : b + seen] for b in range(0, width, columns)]
    x = jnp.stack(blocks, 2).reshape(*x.shape[:2], len(blocks), seen * channels)
    x = jnp.concatenate([x[:, a : a + rows] for a in range(kh)], axis=3)
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, columns * features)
    product = _contract(x, g, (0, 0)).astype(x.dtype)
    product = product.reshape(kh, seen, channels, columns, features)
    pairs = [[product[:, v + b, :, v] for v in range(columns)] for b in range(kw)]
    return jnp.stack([functools.reduce(jnp.add, pair) for pair in pairs], 1)


def _strided(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """As stride 1 on blocks of stride x stride pixels, taken as channels."""
    n, channels = x.shape[0], x.shape[-1]
    (sh, sw), (kh, kw) = geometry.strides, geometry.kernel
    block_kernel = (-(-kh // sh), -(-kw // sw))
    height = geometry.output[0] + block_kernel[0] - 1
    width = geometry.output[1] + block_kernel[1] - 1
    (top, _), (left, _) = geometry.padding
    x = _pad(
        x,
        (top, height * sh - x.shape[1] - top),
        (left, width * sw - x.shape[2] - left),
    )
    x = x.reshape(n, height, sh, width, sw, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = _Geometry((height, width), block_kernel, (1, 1), ((0, 0), (0, 0)))
    product = _kernel_gradient(x.reshape(n, height, width, -1), g, blocks)
    product = product.reshape(*block_kernel, sh, sw, channels, -1)
    product = product.transpose(0, 2, 1, 3, 4, 5)
    product = product.reshape(block_kernel[0] * sh, -1, channels, g.shape[-1])
    return product[:kh, :kw]


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """What products of a type are accumulated in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _contract(
    a: jax.Array, b: jax.Array, axes: tuple[int, int], *, batch: bool = False
) -> jax.Array:
    """The product over an axis of each, for each index of axis 0 if that is a batch."""
    shared = ((0,), (0,)) if batch else ((), ())
    contracted = ((axes[0],), (axes[1],))
    return lax.dot_general(
        a, b, (contracted, shared), preferred_element_type=_wide(a.dtype)
    )


def _pad(
    x: jax.Array, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0
) -> jax.Array:
    """Rows and columns added to NHWC, or taken away where negative."""
    config = ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))
    return lax.pad(x, x.dtype.type(value), config)


# Pooling


def max_pool(x: jax.Array, *, window: int, stride: int, padding: Pads) -> jax.Array:
    """The largest value of each window, outside counting as -inf: NHWC -> [N, h, w, C].

    A window's gradient goes to its first largest value in row-major order.
    """
    pool = _max_pool if _is_auto(x) else _plain_max_pool
    return pool(x, window, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    return _plain_max_pool(x, window, stride, padding)


def _max_pool_forward(
    x: jax.Array, window: int, stride: int, padding: Pads
) -> tuple[jax.Array, jax.Array]:
    return _max_pool(x, window, stride, padding), x


def _max_pool_backward(
    window: int, stride: int, padding: Pads, x: jax.Array, g: jax.Array
) -> tuple[jax.Array]:
    def plain(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _plain_max_pool(x, window, stride, padding), x)[1](g)[
            0
        ]

    def fast(x: jax.Array, g: jax.Array) -> jax.Array:
        return _max_pool_gradient(x, g, window, stride, padding)

    return (_on_cpu(fast, plain, x, g),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _plain_max_pool(x: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    return lax.reduce_window(
        x,
        x.dtype.type(-np.inf),  # concrete: only then has reduce_window a gradient
        lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), *padding, (0, 0)),
    )


def _max_pool_gradient(
    x: jax.Array, g: jax.Array, window: int, stride: int, padding: Pads
) -> jax.Array:
    """Each pixel takes the gradient of the windows whose first largest value it is."""
    n, height, width, channels = x.shape
    _, rows, columns, _ = g.shape
    (top, _), (left, _) = padding
    # `overlap` windows in a row may hold a pixel. The map, padded to blocks of one
    # stride, gets so many more blocks that every window's pixels are there.
    overlap = -(-window // stride)
    down, across = rows + overlap - 1, columns + overlap - 1
    x = _pad(
        x,
        (top, down * stride - height - top),
        (left, across * stride - width - left),
        -np.inf,
    )
    # Which pixel each window chose, numbered as in a window of whole blocks.
    side = overlap * stride
    largest = jnp.full((), -np.inf, x.dtype)
    choice = jnp.zeros((), jnp.int32)
    for a, b in np.ndindex(window, window):
        pixel = x[:, a::stride, b::stride][:, :rows, :columns]
        choice = jnp.where(pixel > largest, a * side + b, choice)
        largest = jnp.maximum(pixel, largest)
    if overlap > 1:  # once, not again for each of the windows that hold a pixel
        choice = lax.optimization_barrier(choice)
    inside = np.arange(stride)
    total = jnp.zeros((), g.dtype)
    for i, j in np.ndindex(overlap, overlap):
        # The window that starts i blocks above and j blocks left of a pixel's block.
        around = (i, overlap - 1 - i), (j, overlap - 1 - j)
        numbers = (inside[:, None] + i * stride) * side + inside + j * stride
        chosen = _pad(choice, *around, -1)[:, :, None, :, None]
        gradient = _pad(g, *around)[:, :, None, :, None]
        total += jnp.where(chosen == numbers[:, None, :, None], gradient, 0)
    total = total.reshape(n, down * stride, across * stride, channels)
    return _pad(
        total,
        (-top, height + top - down * stride),
        (-left, width + left - across * stride),
    )

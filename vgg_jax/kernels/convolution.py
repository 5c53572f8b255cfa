"""This module has convolution in forms that are fast on CPU and on GPUs.

XLA compiles some convolutions, and some of their gradients, to slow code. Each function
here is the plain `jax.lax` one, values and gradients, on every platform; only when the
program is lowered do the forms below replace it, chosen by shape. On CPU:

- the weight gradient is matrix products (`_gram`);
- so is a 1x1 convolution, or one on a map of at most 4 pixels or of the kernel's size
  (`_dense`);
- a 3x3 convolution of many channels is Winograd's, and so are its gradients;
- one from and to few channels, on a small map, is a sum of shifted images (`_taps`).

On GPUs one on a map of the kernel's size, such as a fully-connected layer, is a matrix
product (`_whole`), without copies of its weights in the order that cuDNN wants.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from vgg_jax.kernels import winograd
from vgg_jax.kernels.padding import Pads, pad
from vgg_jax.kernels.platforms import as_it_is, can_choose, choose, once
from vgg_jax.kernels.trilinear import derivative

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_SPECS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

_CACHE = 6 * 2**20  # bytes of copies that `_gram` makes at a time, to read them again

# From so many weights a pixel of the kernel on, Winograd's form of a convolution, and
# that of the kernel's gradient, is the faster one. It compiles for a third of a second
# longer, which it saves within some tens of runs from so many products of a pixel and a
# weight on: of several images, or of one to three in a program that is likely to run
# often, since it computes derivatives.
_WINOGRAD, _WINOGRAD_GRADIENT = 128 * 256, 64 * 128
_WINOGRAD_WORK, _WINOGRAD_WORK_OF_FEW = 2**25, 2**27


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """The geometry of a convolution: map, kernel, strides and padding, in pixels.

    It is also the trilinear form <conv(x, kernel), g>, whose three arrays are the input
    x, the kernel, and the gradient g of the output.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Pads
    is_linear = (True, True, True)

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
        """Whether one window is the whole map, as in a fully-connected layer."""
        return self.kernel == self.size and self.padding == ((0, 0), (0, 0))

    @property
    def is_pixelwise(self) -> bool:
        """Whether an output pixel depends on one input pixel: 1x1, without padding."""
        return self.kernel == (1, 1) and self.padding == ((0, 0), (0, 0))

    def has_few(self, channels: int, features: int) -> bool:
        """Returns whether an output needs few numbers, on a small map of few channels.

        On a large map XLA may keep every shifted image in memory.
        """
        numbers = _area(self.kernel) * channels
        return numbers <= 27 and channels * features <= 96 and _area(self.size) <= 4096

    def suits_winograd(
        self, images: int, weights: int, *, least: int, is_derived: bool = True
    ) -> bool:
        """Returns whether Winograd's form can take it, and takes less time.

        Args:
            images: how many there are.
            weights: the number of pairs of a channel of input and one of output.
            least: the least of them for which it pays.
            is_derived: whether the program computes derivatives.
        """
        work = images * _area(self.output) * weights
        return (
            (self.kernel, self.strides) == ((3, 3), (1, 1))
            and min(self.output) >= 4
            and weights >= least
            and (images >= 4 or is_derived)
            and work >= (_WINOGRAD_WORK if images >= 4 else _WINOGRAD_WORK_OF_FEW)
        )

    @property
    def transposed(self) -> "_Geometry":
        """The convolution that, at stride 1, leads from the output to the input."""
        rows, columns = (
            (k - 1 - pads[0], k - 1 - pads[1])
            for k, pads in zip(self.kernel, self.padding, strict=True)
        )
        return _Geometry(self.output, self.kernel, self.strides, (rows, columns))

    @property
    def is_dense(self) -> bool:
        """Whether a matrix product computes the convolution well.

        At stride 1 that is so where all or most inputs reach every output, and where an
        output pixel depends on its own input pixel alone.
        """
        is_tiny = self.kernel != (1, 1) and _area(self.size) <= 4
        return self.strides == (1, 1) and (
            is_tiny or self.is_whole or self.is_pixelwise
        )

    def shape(
        self, wanted: int, first: Sequence[int], second: Sequence[int]
    ) -> tuple[int, ...]:
        """Returns the shape of x, of the kernel or of g, whichever is wanted."""
        match wanted:
            case 0:
                return (second[0], *self.size, first[2])
            case 1:
                return (*self.kernel, first[3], second[3])
            case _:
                return (first[0], *self.output, second[3])

    def derivative(self, wanted: int, first: jax.Array, second: jax.Array) -> jax.Array:
        """Computes the gradient of x or of the kernel, or the convolution itself."""
        match wanted:
            case 0:
                return self._input_gradient(kernel=first, g=second)
            case 1:
                return self._kernel_gradient(x=first, g=second)
            case _:
                return _conv(first, second, self, first.dtype, True)

    def _input_gradient(self, kernel: jax.Array, g: jax.Array) -> jax.Array:
        shape = self.shape(0, kernel.shape, g.shape)

        def transposed(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            return lambda kernel, g: _transposed(
                lambda x: conv(x, kernel, self), shape, g
            )

        plain = transposed(_plain)
        if self.is_dense:
            whole = transposed(_whole) if self.is_whole else None
            return choose(kernel, g, plain=plain, cpu=transposed(_dense), gpu=whole)
        if not _is_wide(g.dtype):
            return choose(
                *(kernel, g),
                plain=plain,
                cpu=lambda kernel, g: plain(kernel, _apart(g)),
            )
        back = self.transposed
        if not back.suits_winograd(len(g), _area(kernel.shape[2:]), least=_WINOGRAD):
            return plain(kernel, g)

        def fast(kernel: jax.Array, g: jax.Array) -> jax.Array:
            turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
            return winograd.convolve(g, turned, back.padding)

        return choose(kernel, g, plain=plain, cpu=fast)

    def _kernel_gradient(self, x: jax.Array, g: jax.Array) -> jax.Array:
        shape = self.shape(1, x.shape, g.shape)

        def transposed(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            return lambda x, g: _transposed(
                lambda kernel: conv(x, kernel, self), shape, g
            )

        if self.is_dense and not self.is_pixelwise:
            fast = transposed(_dense)
        else:
            fast = functools.partial(_kernel_gradient, geometry=self)
        whole = transposed(_whole) if self.is_whole else None
        return choose(x, g, plain=transposed(_plain), cpu=fast, gpu=whole)


def _area(sides: Sequence[int]) -> int:
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
    """Computes `jax.lax.conv_general_dilated`, in fast forms of NHWC and HWIO arrays.

    It is an argument of `nnx.Conv(..., conv_general_dilated=conv_general_dilated)`.
    What the layers of this package do not use (dilation, groups, a precision) goes to
    `jax.lax` on every platform. With a `preferred_element_type` wider than the arrays
    the products are summed in it and the result is of it, while derivatives are
    computed in the arrays' own type, as after a cast.
    """
    ones = (None, (1, 1))
    dtype = lhs.dtype if preferred_element_type is None else preferred_element_type
    covered = (
        lhs.ndim == 4
        and dimension_numbers in (_DIMENSIONS, _SPECS)
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and jnp.promote_types(lhs.dtype, dtype) == dtype
        and (lhs_dilation if lhs_dilation is None else tuple(lhs_dilation)) in ones
        and (rhs_dilation if rhs_dilation is None else tuple(rhs_dilation)) in ones
        and feature_group_count == batch_group_count == 1
        and can_choose(lhs, rhs)
        and precision is out_sharding is None
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
    return _conv(lhs, rhs, geometry, jnp.dtype(dtype))


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Cross-correlates [N, H, W, I] with [kh, kw, I, O] -> [N, h, w, O].

    `padding` is in pixels of zeros on every side.
    """
    pads = ((padding, padding), (padding, padding))
    return conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _conv(
    x: jax.Array,
    kernel: jax.Array,
    geometry: _Geometry,
    dtype: jnp.dtype,
    is_derived: bool = False,
) -> jax.Array:
    """Convolves; `is_derived` is true where derivatives are computed beside it."""
    plain = functools.partial(_plain, geometry=geometry, dtype=dtype)
    form: Callable[..., jax.Array] = _plain
    if geometry.is_dense:
        form = _dense
    elif geometry.strides == (1, 1) and geometry.has_few(*kernel.shape[2:]):
        form = _taps
    if form is _plain and _is_wide(x.dtype):
        weights = _area(kernel.shape[2:])
        if not geometry.suits_winograd(
            len(x), weights, least=_WINOGRAD, is_derived=is_derived
        ):
            return plain(x, kernel)
        form = _winograd

    def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return form(_apart(x).astype(dtype), kernel.astype(dtype), geometry)

    whole = functools.partial(_whole, geometry=geometry, dtype=dtype)
    gpu = whole if geometry.is_whole else None
    return choose(x, kernel, plain=plain, cpu=fast, gpu=gpu)


@functools.partial(_conv.defjvp, symbolic_zeros=True)
def _conv_jvp(
    geometry: _Geometry,
    dtype: jnp.dtype,
    is_derived: bool,
    primals: tuple[jax.Array, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, Any]:
    x, kernel = primals
    x = choose(
        x, plain=as_it_is, cpu=once
    )  # the convolution reads it, and its derivatives
    primals = x, kernel
    given = dict(enumerate(primals))
    changes = [  # an argument that is constant has no tangent, and costs nothing
        derivative(geometry, given | {slot: tangent})
        for slot, tangent in enumerate(tangents)
        if not isinstance(tangent, SymbolicZero)
    ]
    change = functools.reduce(jnp.add, changes).astype(dtype)
    return _conv(*primals, geometry, dtype, True), change


def _transposed(
    function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], g: jax.Array
) -> jax.Array:
    """Applies the transpose of a linear function of an array of this shape to g."""
    (result,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, g.dtype))(g)
    return result


def _plain(
    x: jax.Array,
    kernel: jax.Array,
    geometry: _Geometry,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=_DIMENSIONS,
        preferred_element_type=None if dtype == x.dtype else dtype,
    )


def _is_wide(dtype: jnp.dtype) -> bool:
    return dtype.itemsize >= 4


def _apart(x: jax.Array) -> jax.Array:
    """Keeps a convolution on CPU out of the code that computes its 16-bit input.

    jaxlib 0.12.0 fuses two convolutions of bfloat16, and what is between them, into
    code that reads what it has not written; the second then gives NaN.
    """
    return x if _is_wide(x.dtype) else lax.optimization_barrier(x)


def _winograd(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    return winograd.convolve(x, kernel, geometry.padding)


def _taps(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """Convolves at stride 1 by summing shifted images, each times a kernel pixel."""
    x = pad(x, *geometry.padding)
    height, width = geometry.output
    taps = (
        x[:, a : a + height, b : b + width, c, None] * kernel[a, b, c]
        for a, b, c in np.ndindex(*kernel.shape[:3])
    )
    return functools.reduce(jnp.add, taps)


def _dense(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """Convolves at stride 1 by one matrix from every input to every output."""
    if geometry.is_pixelwise:
        return x @ kernel[0, 0]
    n, height, width, channels = x.shape
    rows, columns = geometry.output
    (top, _), (left, _) = geometry.padding
    if geometry.is_whole:
        return _whole(x, kernel, geometry)
    # Input pixel (i, j) reaches output (u, v) by the kernel's pixel
    # (i - u + top, j - v + left), so all outputs by a window of the reversed kernel,
    # with zeros where that is outside.
    kh, kw, _, features = kernel.shape
    above, before = max(0, height + top - kh), max(0, width + left - kw)
    taps = lax.rev(kernel, (0, 1)).reshape(1, kh, kw, channels * features)
    below, after = max(0, rows - 1 - top), max(0, columns - 1 - left)
    taps = pad(taps, (above, below), (before, after))[0]
    matrix = []
    for i, j in np.ndindex(height, width):
        a, b = above + kh - 1 - (i + top), before + kw - 1 - (j + left)
        matrix.append(taps[a : a + rows, b : b + columns])
    # [H W, h, w, I, O] -> [H W I, h w O]
    weights = jnp.stack(matrix).reshape(-1, rows, columns, channels, features)
    weights = weights.transpose(0, 3, 1, 2, 4).reshape(height * width * channels, -1)
    product = x.reshape(n, height * width * channels) @ weights
    return product.reshape(n, rows, columns, features)


def _whole(
    x: jax.Array,
    kernel: jax.Array,
    geometry: _Geometry,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves where one window is the whole map, by a matrix product."""
    n, features = len(x), kernel.shape[-1]
    product = lax.dot(
        x.reshape(n, kernel.size // features),
        kernel.reshape(-1, features),
        preferred_element_type=x.dtype if dtype is None else dtype,
    )
    return product.reshape(n, 1, 1, features)


def _kernel_gradient(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the kernel's gradient from the input and the output's gradient."""
    if geometry.strides != (1, 1):
        return _strided(x, g, geometry)
    if x.shape[-1] <= 3:
        return _blocks(x, g, geometry)
    weights = x.shape[-1] * g.shape[-1]
    if _is_wide(x.dtype) and geometry.suits_winograd(
        len(x), weights, least=_WINOGRAD_GRADIENT
    ):
        return winograd.kernel_gradient(x, g, geometry.padding)
    return _gram(x, g, geometry)


def _gram(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the kernel's gradient at stride 1 as one product of shifted arrays.

    The product is of x at every column shift with g at every row shift. Shifting each
    along one axis of the kernel copies less than all shifts of x would, and makes both
    sides of the product wide.
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
    """Stacks x at every column shift, and g at every row shift, along the channels."""
    height, width = x.shape[1], geometry.output[1]
    (top, bottom), columns = geometry.padding
    kh, kw = geometry.kernel
    x = pad(x, (0, 0), columns)
    x = jnp.concatenate([x[:, :, b : b + width] for b in range(kw)], axis=3)
    g = pad(g, (kh - 1 - top, kh - 1 - bottom), (0, 0))
    g = jnp.concatenate([g[:, kh - 1 - a :][:, :height] for a in range(kh)], axis=3)
    return x, g


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _blocks(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the kernel's gradient at stride 1 from blocks of up to four columns.

    It is for few channels. g is not copied: a block of its row is a row of the product.
    The product pairs each column of the block with each column that the block sees; the
    gradient is the sum of some of these pairs.
    """
    rows, width = geometry.output
    kh, kw = geometry.kernel
    channels, features = x.shape[-1], g.shape[-1]
    columns = next(d for d in (4, 3, 2, 1) if width % d == 0)
    seen = columns + kw - 1
    x = pad(x, *geometry.padding)
    blocks = [x[:, :, b : b + seen] for b in range(0, width, columns)]
    x = jnp.stack(blocks, 2).reshape(*x.shape[:2], len(blocks), seen * channels)
    x = jnp.concatenate([x[:, a : a + rows] for a in range(kh)], axis=3)
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, columns * features)
    product = _contract(x, g, (0, 0)).astype(x.dtype)
    product = product.reshape(kh, seen, channels, columns, features)
    pairs = [[product[:, v + b, :, v] for v in range(columns)] for b in range(kw)]
    return jnp.stack([functools.reduce(jnp.add, pair) for pair in pairs], 1)


def _strided(x: jax.Array, g: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the kernel's gradient at any stride as that of a stride of 1.

    Blocks of stride x stride pixels become the channels of a smaller map.
    """
    n, channels = x.shape[0], x.shape[-1]
    (sh, sw), (kh, kw) = geometry.strides, geometry.kernel
    block_kernel = (-(-kh // sh), -(-kw // sw))
    height = geometry.output[0] + block_kernel[0] - 1
    width = geometry.output[1] + block_kernel[1] - 1
    (top, _), (left, _) = geometry.padding
    x = pad(
        x,
        (top, height * sh - x.shape[1] - top),
        (left, width * sw - x.shape[2] - left),
    )
    x = x.reshape(n, height, sh, width, sw, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = _Geometry((height, width), block_kernel, (1, 1), ((0, 0), (0, 0)))
    x = x.reshape(n, height, width, sh * sw * channels)
    product = _kernel_gradient(x, g, blocks)
    product = product.reshape(*block_kernel, sh, sw, channels, -1)
    product = product.transpose(0, 2, 1, 3, 4, 5)
    product = product.reshape(block_kernel[0] * sh, -1, channels, g.shape[-1])
    return product[:kh, :kw]


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type that products of a type are summed in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _contract(
    a: jax.Array, b: jax.Array, axes: tuple[int, int], *, batch: bool = False
) -> jax.Array:
    """Multiplies a and b and sums over one axis of each.

    With `batch`, axis 0 of both is a batch: each index has its own product.
    """
    shared = ((0,), (0,)) if batch else ((), ())
    contracted = ((axes[0],), (axes[1],))
    return lax.dot_general(
        a, b, (contracted, shared), preferred_element_type=_wide(a.dtype)
    )

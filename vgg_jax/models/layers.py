"""This module has the layers of both papers as data; a network is a tuple of them.

A row says what a layer is and how it changes a map's side; `network.ConvNet` runs rows,
`measure.summary` measures them. Arrays are NHWC.

Images of several sizes can share a batch, padded to one: `sizes`, int32 [N, 2], then
says how many rows and columns of each map are the image's own. A cell of those sees
beyond them only where the layer itself adds padding, so there the rest of the map is
set to what that padding is. Results are those of the image alone.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim

from vgg_jax.kernels import pooling

Size = TypeVar("Size", int, np.ndarray, jax.Array)  # one side, or many


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with the name that its parameters and its map have."""

    name: str

    def output_size(self, size: Size) -> Size:
        """Returns its map's side for its input's; below 1 if the input is too small."""
        return size


@dataclasses.dataclass(frozen=True)
class Conv(Layer):
    """A convolution with bias; `padding` is in pixels of zeros on every side."""

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0

    def output_size(self, size: Size) -> Size:
        """Returns the number of whole windows that fit on a side."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclasses.dataclass(frozen=True)
class FullyConnected(Conv):
    """A fully-connected layer as the convolution it equals (section 3.2)."""


# What batch normalization adds to the variance: torchvision's, PyTorch's and Caffe's.
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Bias(Layer):
    """The bias of the convolution of this name, apart from its products.

    No network has such a row; `in_running_order` puts them in.
    """


@dataclasses.dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalization over N, H and W, with `EPSILON`."""


@dataclasses.dataclass(frozen=True)
class Statistics(Layer):
    """The statistics of the batch for the batch normalization of this name.

    They are of a convolution without its bias, which is not added at all, for the mean
    of the batch would take it away again. Its gradient is zero, and need not be summed
    from a whole map. No network has such a row; `in_running_order` puts them in.

    Args:
        conv: the name of the convolution.
        signed: whether a max pool comes between this row, which follows its
            convolution at once, and the normalization. The kernel is then multiplied by
            the sign of the scale, so that the larger of two numbers of the map is the
            larger one when they are normalized.
    """

    conv: str
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm(Layer):
    """Normalization across channels; see `local_response_norm`."""

    size: int
    alpha: float
    beta: float
    k: float


@dataclasses.dataclass(frozen=True)
class Relu(Layer):
    """The rectifier max(x, 0)."""


@dataclasses.dataclass(frozen=True)
class Pool(Layer):
    """A pool without padding; `ceil_mode` keeps a last, partial window, as in Caffe."""

    window: int
    stride: int
    ceil_mode: bool

    def output_size(self, size: Size) -> Size:
        """Returns how many windows fit; `ceil_mode` adds one that begins inside."""
        room = size - self.window
        return (-(-room // self.stride) if self.ceil_mode else room // self.stride) + 1


@dataclasses.dataclass(frozen=True)
class MaxPool(Pool):
    """A pool that takes the largest value of each window."""


@dataclasses.dataclass(frozen=True)
class AveragePool(Pool):
    """A pool that takes the mean of each window over the map's pixels in it."""


@dataclasses.dataclass(frozen=True)
class L2Pool(Pool):
    """A pool that takes the root of the weighted mean of squares, as DISTS does.

    A window is centered on every `stride`-th pixel, so `ceil_mode` changes nothing. Its
    sides are tapered as a Hann window; what is outside of the map counts as zeros.
    """

    ceil_mode: bool = False

    def output_size(self, size: Size) -> Size:
        """Returns how many pixels of a side are the center of a window."""
        return (size - 1) // self.stride + 1


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Inverted dropout: sets values to 0 at `rate`, scales others by 1 / (1 - rate)."""

    rate: float

    def __post_init__(self) -> None:
        """Refuses a rate outside [0, 1)."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"expected a dropout rate in [0, 1), got {self.rate}")


def stages(
    layers: tuple[Layer, ...], *, after_pools: bool = True
) -> tuple[tuple[Layer, ...], ...]:
    """Groups the rows into stages.

    One begins with each fully-connected layer and, with `after_pools`, after each pool.
    """
    groups: list[list[Layer]] = [[]]
    for before, layer in zip((None, *layers), layers, strict=False):
        is_after_pool = after_pools and isinstance(before, Pool)
        if is_after_pool or isinstance(layer, FullyConnected):
            groups.append([])
        groups[-1].append(layer)
    return tuple(tuple(group) for group in groups if group)


def in_running_order(
    layers: Sequence[Layer],
    wanted: Collection[str] = (),
    measured: Collection[str] = (),
) -> tuple[Layer, ...]:
    """Returns the order in which rows run: each bias by itself, and pools early.

    Biases and ReLUs before a max pool follow it. The result is the same, for neither
    changes which of two numbers is the larger, rounded or not; but they, their
    gradients and the map that is kept for those are of the pooled size. So do batch
    normalizations by statistics of the batch, which alone are then of the whole map;
    but for rounding, and where a scale is 0 and any number of a window its largest, the
    gradients are the same, too.

    Args:
        layers: consecutive rows of a network.
        wanted: the names of rows whose maps somebody needs; the order leaves these as
            they are.
        measured: the names of batch normalizations that take the statistics of the
            batch. Right after a convolution they are divided: in the place of its bias
            is a row of `Statistics`.
    """
    order: list[Layer] = []
    for layer in layers:
        place = len(order)
        match layer, order[-2:]:
            case BatchNorm(name), [Conv(conv), Bias()]:
                if name in measured and conv not in wanted:
                    order[-1] = Statistics(name, conv)
            case MaxPool(name), _ if name not in wanted:
                place = _place_of_pool(order, wanted)
                before = order[place - 1] if place else None
                if isinstance(before, Statistics):
                    order[place - 1] = dataclasses.replace(before, signed=True)
        order.insert(place, layer)
        if isinstance(layer, Conv):
            order.append(Bias(layer.name))
    return tuple(order)


def _place_of_pool(order: list[Layer], wanted: Collection[str]) -> int:
    """Returns how many rows stay before a max pool that follows all of them."""
    divided = [row.name for row in order if isinstance(row, Statistics)]
    place = len(order)
    for row in reversed(order):
        can_follow = isinstance(row, Bias | Relu)
        if isinstance(row, BatchNorm):
            can_follow = row.name in divided
        if not can_follow or row.name in wanted:
            break
        place -= 1
    return place


class ReceptiveField(NamedTuple):
    """The pixels of the image that the cells of a map see, along either side.

    Cell i sees `size` pixels from start + i * stride on; those outside the image are
    padding.
    """

    size: int
    stride: int
    start: int

    @property
    def center(self) -> float:
        """The middle of what cell 0 sees, in pixels; pixel 0 has its center at 0."""
        return self.start + (self.size - 1) / 2


def window(layer: Layer) -> tuple[int, int, int]:
    """Returns kernel, stride and padding; 1, 1 and 0 of a layer without a window."""
    match layer:
        case Conv():
            return layer.kernel, layer.stride, layer.padding
        case L2Pool():
            return layer.window, layer.stride, layer.window // 2
        case Pool():
            return layer.window, layer.stride, 0
        case _:
            return 1, 1, 0


def receptive_fields(layers: Sequence[Layer]) -> tuple[ReceptiveField, ...]:
    """Returns the receptive field of each row's map, at any image size."""
    fields = []
    size, stride, start = 1, 1, 0
    for layer in layers:
        kernel, step, padding = window(layer)
        size += (kernel - 1) * stride
        start -= padding * stride
        stride *= step
        fields.append(ReceptiveField(size, stride, start))
    return tuple(fields)


def channels_after(layer: Layer, channels: int) -> int:
    """Returns the channels of a layer's map, from those of its input."""
    return layer.features if isinstance(layer, Conv) else channels


def output_size(layers: tuple[Layer, ...], size: int) -> int:
    """Returns the last map's side for an image side in pixels; 0 if it is too small."""
    for layer in layers:
        size = layer.output_size(size)
        if size < 1:
            return 0
    return size


def output_sizes(layers: tuple[Layer, ...], sizes: jax.Array) -> jax.Array:
    """Returns the last map's sides for image sides in pixels, none too small."""
    for layer in layers:
        sizes = layer.output_size(sizes)
    return sizes


def smallest_size(layers: tuple[Layer, ...]) -> int:
    """Returns the smallest image side, in pixels, whose last map has a cell."""
    return next(size for size in itertools.count(1) if output_size(layers, size))


def check_size(layers: tuple[Layer, ...], height: int, width: int) -> None:
    """Refuses images that are too small for the layers; sides are in pixels.

    A symbolic side of `jax.export` is not looked at: it stands for many, and whether
    all of them are large enough cannot be decided. Constraints such as "h >= 224" say
    it to JAX, which then refuses a smaller image where the exported program is called.

    Raises:
        ValueError: a side is too small; the message says what fits.
    """
    sides = [side for side in (height, width) if not is_symbolic_dim(side)]
    if not all(output_size(layers, side) for side in sides):
        smallest = smallest_size(layers)
        raise ValueError(
            f"expected images of at least {smallest}x{smallest} pixels, got "
            f"{height}x{width}; rescale them, or take a VGG for small images: "
            "fc_kernel=1 or head='global_pool' fits 32x32, with ceil_mode=True 28x28"
        )


def _constant(value: float, like: jax.Array) -> np.generic:
    """Returns a concrete scalar of the type of `like`.

    `reduce_window` has gradients only where it sees the value.
    """
    return like.dtype.type(value)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Computes max(x, 0), whose derivative at 0 is 0, and at NaN 1.

    Unlike that of `jax.nn.relu` its derivative is made of the result, which the next
    layer keeps for its own, so that no program keeps x as well, and cuDNN computes it
    inside of the convolution before it.
    """
    return jnp.maximum(x, 0)


# Not `y > 0`: XLA makes `x > 0` of it, since y is a maximum with 0, and keeps x.
relu.defjvps(lambda change, y, x: jnp.where(y != 0, change, 0))


def local_response_norm(
    x: jax.Array, *, size: int, alpha: float, beta: float, k: float
) -> jax.Array:
    """Computes x / (k + alpha * sum of squares over `size` channels around) ** beta.

    Krizhevsky et al. 2012, section 3.3, as A-LRN of arXiv:1409.1556 uses it:
    [N, H, W, C] -> [N, H, W, C]. Caffe's layer is this one with alpha / size and k = 1.
    """
    half = size // 2
    sums = lax.reduce_window(
        jnp.square(x),
        _constant(0.0, x),
        lax.add,
        window_dimensions=(1, 1, 1, size),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (0, 0), (0, 0), (half, size - 1 - half)),
    )
    return x * (k + alpha * sums) ** -beta


def _padding(x: jax.Array, pool: Pool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the rows and columns to add so that `ceil_mode` windows are whole.

    For a symbolic side of `jax.export` they are as many as any side needs: that is a
    number, and what no window reaches does not matter.
    """
    if not pool.ceil_mode:
        return (0, 0), (0, 0)
    rows, columns = (
        pool.stride - 1
        if is_symbolic_dim(n)
        else (pool.output_size(n) - 1) * pool.stride + pool.window - n
        for n in x.shape[1:3]
    )
    return (0, rows), (0, columns)


def inside(shape: tuple[int, ...], sizes: jax.Array) -> jax.Array:
    """Says which cells of a map [N, h, w, C] are within `sizes`: bool [N, h, w, 1]."""
    rows, columns = (
        jnp.arange(side) < sizes[:, axis, None] for axis, side in enumerate(shape[1:3])
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def fill_outside(x: jax.Array, sizes: jax.Array, value: float = 0.0) -> jax.Array:
    """Sets every cell outside `sizes` to `value`: [N, h, w, C] -> [N, h, w, C].

    `sizes` are int32 [N, 2], or [N, 2, C] where those of the channels differ.
    """
    # Of each number, not of each pixel: a mask of pixels would have to be spread over
    # the lanes of a TPU, for longer than the convolution takes that reads its result.
    of_channels = sizes[..., None] if sizes.ndim == 2 else sizes
    of_channels = jnp.broadcast_to(of_channels, (*sizes.shape[:2], x.shape[-1]))
    heights, widths = (of_channels[:, axis, None, None] for axis in (0, 1))
    is_inside = (jnp.arange(x.shape[1])[:, None, None] < heights) & (
        jnp.arange(x.shape[2])[:, None] < widths
    )
    return jnp.where(is_inside, x, jnp.asarray(value, x.dtype))


def max_pool(x: jax.Array, pool: MaxPool, sizes: jax.Array | None = None) -> jax.Array:
    """Takes the largest value of each window: [N, H, W, C] -> [N, h, w, C]."""
    if not pool.ceil_mode:
        sizes = None  # no window of an image's own cells reaches beyond it
    if sizes is not None:
        x = fill_outside(x, sizes, -np.inf)
    rows, columns = _padding(x, pool)
    x = pooling.max_pool(
        x, window=pool.window, stride=pool.stride, padding=(rows, columns)
    )
    # No -inf stays in windows that are wholly outside.
    return x if sizes is None else fill_outside(x, pool.output_size(sizes))


def average_pool(
    x: jax.Array, pool: AveragePool, sizes: jax.Array | None = None
) -> jax.Array:
    """Takes the mean of each window: [N, H, W, C] -> [N, h, w, C].

    A partial window at the border divides by the pixels that it has, as Caffe's does.
    """

    def window_sum(values: jax.Array) -> jax.Array:
        return lax.reduce_window(
            values,
            _constant(0.0, values),
            lax.add,
            window_dimensions=(1, pool.window, pool.window, 1),
            window_strides=(1, pool.stride, pool.stride, 1),
            padding=((0, 0), *_padding(values, pool), (0, 0)),
        )

    if not pool.ceil_mode and sizes is None:
        return window_sum(x) / pool.window**2
    if sizes is None:
        return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
    pixels = window_sum(inside(x.shape, sizes).astype(x.dtype))
    return window_sum(fill_outside(x, sizes)) / jnp.maximum(pixels, 1)


def l2_pool(x: jax.Array, pool: L2Pool, sizes: jax.Array | None = None) -> jax.Array:
    """Takes the root of each window's weighted mean of squares.

    [N, H, W, C] -> [N, h, w, C]. Squares are summed in float32 at least.
    """
    if sizes is not None:
        x = fill_outside(x, sizes)
    means = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    taper = np.hanning(pool.window + 2)[1:-1]
    for axis in (1, 2):
        count, around = pool.output_size(x.shape[axis]), [(0, 0)] * x.ndim
        around[axis] = (pool.window // 2,) * 2
        padded = jnp.pad(means, around)
        last = (count - 1) * pool.stride + 1
        first, *others = (
            float(weight) * lax.slice_in_dim(padded, i, i + last, pool.stride, axis)
            for i, weight in enumerate(taper / taper.sum())
        )
        means = sum(others, first)
    # The root of zero has no finite gradient; this is what DISTS adds.
    roots = jnp.sqrt(means + 1e-12).astype(x.dtype)
    return roots if sizes is None else fill_outside(roots, pool.output_size(sizes))

"""This module has the Flax modules of a network: convolution, batch normalization.

Both can do their work in parts, and on images side by side, see `vgg_jax.kernels.tpu`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from vgg_jax.kernels import tpu


def promote_factors(
    arrays: tuple[jax.Array, ...], /, *, dtype: Any
) -> tuple[jax.Array, ...]:
    """Casts the input and the kernel of a layer, and leaves its bias in float32."""
    x, kernel, bias = arrays
    return x.astype(dtype), kernel.astype(dtype), bias


class Conv(nnx.Conv):
    """`nnx.Conv` whose two parts, products and bias, can be computed apart."""

    def multiply(
        self, x: jax.Array, *, sign: jax.Array | None = None, pairs: bool = False
    ) -> jax.Array:
        """Convolves without the bias: [N, H, W, I] -> [N, h, w, O].

        Args:
            x: the map; with `pairs` of two images side by side, see
                `vgg_jax.kernels.tpu`.
            sign: 1 or -1, [O], by which the result is multiplied; None is 1.
            pairs: whether x is of pairs.
        """
        kernel = self.kernel[...]
        if sign is not None:
            kernel = kernel * sign
        x, kernel, _ = self.promote_dtype(
            (x, tpu.pair_kernel(kernel) if pairs else kernel, None), dtype=self.dtype
        )
        options = {}
        if self.preferred_element_type is not None:
            options["preferred_element_type"] = self.preferred_element_type
        return self.conv_general_dilated(
            x,
            kernel,
            (self.strides, self.strides),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **options,
        )

    def add_bias(self, x: jax.Array, *, pairs: bool = False) -> jax.Array:
        """Adds the bias to a map, [N, h, w, O], of single images or of pairs."""
        assert self.bias is not None  # every convolution of a network has one
        bias = self.bias[...]
        bias = tpu.pair_bias(bias) if pairs else bias
        # So the gradient of a bias is summed in the bias's type, not in a narrow one of
        # x, in which a sum over all pixels of a batch is wrong by percents and more.
        return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


class Moments(NamedTuple):
    """The mean and the variance of some cells, [C], and their number, float32."""

    mean: jax.Array
    var: jax.Array
    cells: jax.Array


# Something about the images of a batch, such as their sizes or the cells that count, or
# None for all: one entry, or two where the images are in two halves, side by side or
# apart, that of the first ones and that of the second ones.
Slots = tuple[jax.Array | None, ...]


def takes_running_average(
    module: nnx.BatchNorm, use_running_average: bool | None
) -> bool:
    """Returns whether a module takes the running statistics; None is as it is set.

    No method: `nnx.tabulate` traces those, which then have no truth.
    """
    if use_running_average is None:
        return bool(module.use_running_average)
    return use_running_average


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` with the running variance of torchvision.

    A batch of n cells is normalized by its variance over n; the running variance moves
    towards its estimate for all images, which is over n - 1. A batch without cells that
    count moves nothing. Of Flax's options it has momentum, epsilon, dtype and
    use_running_average; it normalizes over all axes but the last, with scale and bias.
    A network takes it apart: `moments` of a map, `normalize`, perhaps of a smaller one,
    and `move`.
    """

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes [N, h, w, C] over N, h and w, where `mask`, [N, h, w, 1], is true.

        Args:
            x: the map.
            use_running_average: normalize by the running statistics in place of the
                batch's; None does as the module is set.
            mask: the cells that count, [N, h, w, 1] or a shape that broadcasts to it;
                None counts all.
        """
        if takes_running_average(self, use_running_average) or 0 in x.shape:
            return self.normalize(x)
        moments = self.moments((x,), (mask,))
        self.move(moments)
        return self.normalize(x, moments)

    def moments(self, parts: Sequence[jax.Array], masks: Slots = (None,)) -> Moments:
        """Computes the statistics of a batch, of maps [N, h, w, C].

        Args:
            parts: the maps that are the batch together; one with two masks is of images
                side by side, [N / 2, h, w, 2 C].
            masks: the cells that count: bool that broadcasts to [N, h, w, 1], or None
                for all; see `Slots`.
        """
        lanes = len(masks) // len(parts)
        of_parts = [masks[i * lanes :][:lanes] for i in range(len(parts))]
        size = sum(lanes * math.prod(x.shape[:-1]) for x in parts)
        cells = divisor = jnp.float32(size)
        if any(mask is not None for mask in masks):
            counts = [
                jnp.sum(jnp.broadcast_to(mask, (*x.shape[:-1], 1)), dtype=jnp.int32)
                for x, own in zip(parts, of_parts, strict=True)
                for mask in own
                if mask is not None
            ]
            cells = sum(counts[1:], counts[0]).astype(jnp.float32)
            divisor = jnp.where(cells == 0, divisor, cells)
        sums = [
            _sums(x, own, cells == 0) for x, own in zip(parts, of_parts, strict=True)
        ]
        mean, square = (sum(a[1:], a[0]) / divisor for a in zip(*sums, strict=True))
        return Moments(mean, jnp.maximum(square - jnp.square(mean), 0), cells)

    def sign(self) -> jax.Array:
        """Returns 1 where a larger number is normalized to a larger one, or -1: [C]."""
        assert self.scale is not None
        return jnp.where(self.scale[...] < 0, -1.0, 1.0)

    def normalize(
        self,
        x: jax.Array,
        moments: Moments | None = None,
        *,
        sign: jax.Array | None = None,
        pairs: bool = False,
    ) -> jax.Array:
        """Normalizes by statistics of a batch, or else by the running ones.

        Args:
            x: the map; with `pairs` of images side by side.
            moments: the statistics of x; None for the running ones.
            sign: by what x was multiplied, [C], which is undone; None for 1.
            pairs: whether x is of pairs.
        """
        mean, var = (self.mean[...], self.var[...]) if moments is None else moments[:2]
        assert self.scale is not None and self.bias is not None
        scale = self.scale[...] if sign is None else self.scale[...] * sign
        factor = lax.rsqrt(var + self.epsilon) * scale
        bias = self.bias[...] - mean * factor
        if pairs:
            factor, bias = map(tpu.pair_bias, (factor, bias))
        return (x * factor + bias).astype(self.dtype or x.dtype)

    def move(self, moments: Moments) -> None:
        """Moves the running statistics towards those of a batch."""
        mean, var, cells = jax.tree.map(lax.stop_gradient, moments)
        var = var * (1 + 1 / jnp.maximum(cells - 1, 1))
        for running, value in ((self.mean, mean), (self.var, var)):
            moved = self.momentum * running[...] + (1 - self.momentum) * value
            running[...] = jnp.where(cells > 0, moved, running[...])


def _sums(
    x: jax.Array, masks: Slots, all_count: jax.Array | bool
) -> tuple[jax.Array, jax.Array]:
    """Sums a map and its squares over the cells that count: float32 [C], twice.

    Args:
        x: the map, of images side by side if there are two masks.
        masks: the cells that count, see `Slots`.
        all_count: whether all do in spite of the masks, as the mean of no cells would
            not be a number.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sums, where = [x, jnp.square(x)], None
    every, *inner = range(x.ndim - 1)
    counted = [
        (mask | all_count).reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
        for mask in masks
        if mask is not None
    ]
    if counted:
        where = _lanes(counted, x.shape[-1])
        if all(where.shape[axis] == 1 for axis in inner):
            # Whole images count, or not, and their pixels need not be masked.
            sums = [a.sum(inner, keepdims=True) for a in sums]
    total, squares = (
        a.sum((every, *inner), where=where).reshape(len(masks), -1).sum(0) for a in sums
    )
    return total, squares


def _lanes(masks: Sequence[jax.Array], channels: int) -> jax.Array:
    """Makes one mask of that of single images, or of those of images side by side."""
    first, *others = masks
    for second in others:
        is_first = jnp.arange(channels) < channels // 2
        first = jnp.where(is_first, first, second)
    return first

"""This module lays two images side by side in the lanes of a TPU.

A TPU keeps an array's channels in 128 lanes, in memory as in its matrix units. A map of
64 channels fills half of them, and the other half is stored, moved and multiplied all
the same. Two images side by side fill all: their map has the channels of one and then
those of the other, and a convolution of it a kernel of two blocks. What does not mix
channels, such as ReLU and pooling, stays as it is; batch normalization adds up the
statistics of both halves. A value that is not finite reaches the other image of its
pair, as zero times it is no number.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

LANES = 128


def can_pair(images: int, devices: int) -> bool:
    """Returns whether a batch that devices share equally has pairs on each of them."""
    return images > 0 and images % (2 * devices) == 0


def pair(x: jax.Array, devices: int) -> jax.Array:
    """Lays images side by side: [N, h, w, C] -> [N / 2, h, w, 2 C].

    A device's first half of images meets its second half, so that none moves to another
    device.

    Args:
        x: the images.
        devices: how many devices share the batch, each with N / devices images in a
            row, an even number.
    """
    halves = x.reshape(devices, 2, -1, *x.shape[1:])
    pairs = jnp.concatenate([halves[:, 0], halves[:, 1]], axis=-1)
    return pairs.reshape(-1, *pairs.shape[2:])


def halves(x: jax.Array) -> list[jax.Array]:
    """Parts the images of each pair: [N / 2, h, w, 2 C] -> two of [N / 2, h, w, C]."""
    return jnp.split(x, 2, axis=-1)


def join(parts: Sequence[jax.Array], devices: int) -> jax.Array:
    """Puts the images of pairs in order again: two of [N / 2, ...] -> [N, ...]."""
    of_devices = [x.reshape(devices, -1, *x.shape[1:]) for x in parts]
    images = jnp.concatenate(of_devices, axis=1)
    return images.reshape(-1, *images.shape[2:])


def pair_rows(rows: jax.Array, devices: int) -> tuple[jax.Array, jax.Array]:
    """Parts what there is of each image: [N, ...] -> two of [N / 2, ...].

    They are those of the first and of the second images of the pairs.
    """
    both = rows.reshape(devices, 2, -1, *rows.shape[1:])
    first, second = (both[:, i].reshape(-1, *rows.shape[1:]) for i in (0, 1))
    return first, second


def pair_kernel(kernel: jax.Array) -> jax.Array:
    """Makes the kernel for pairs, one block an image: [.., I, O] -> [.., 2 I, 2 O]."""
    zeros = jnp.zeros_like(kernel)
    first = jnp.concatenate([kernel, zeros], axis=-1)
    second = jnp.concatenate([zeros, kernel], axis=-1)
    return jnp.concatenate([first, second], axis=-2)


def pair_bias(bias: jax.Array) -> jax.Array:
    """Makes the bias for pairs, or what else there is of channels: [O] -> [2 O]."""
    return jnp.concatenate([bias, bias])

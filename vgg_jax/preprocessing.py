"""This module makes pixels what a network takes, by a mean and a deviation."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.config import IMAGENET_MEAN


class Preprocessing(Protocol):
    """The preprocessing of images on the device: hashable, so that programs are kept.

    `Normalization` is one, `vgg_jax.data.zca.Whitening` another.
    """

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        ...

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The only height and width that images may have; None for any."""
        ...

    def __call__(self, images: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """Preprocesses [N, H, W, C] with pixels 0-255 -> float32 [N, H, W, C]."""
        ...


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Subtracts a mean from pixels 0-255 and divides by a standard deviation.

    Args:
        mean: the number subtracted from each channel, in gray levels.
        std: the number that each channel is divided by then.

    Raises:
        ValueError: the numbers of channels differ, a mean is not finite, or a
            deviation is not above 0.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        """Makes tuples of other sequences, so that the value can be hashed."""
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std):
            raise ValueError(
                "expected as many values of mean as of std, one a channel, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not all(map(np.isfinite, self.mean)):
            raise ValueError(f"expected finite means, got mean={self.mean}")
        if not all(0 < value < np.inf for value in self.std):
            raise ValueError(f"expected deviations above 0, got std={self.std}")

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return len(self.mean)

    @property
    def image_size(self) -> None:
        """The value None: images may have any size."""
        return

    def __call__(self, images: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """Normalizes images: [N, H, W, C] with pixels 0-255 -> float32 [N, H, W, C].

        Args:
            images: the images, of any number type.
            shift: [N, C] in gray levels, added to the pixels first: the random color
                shift of section 3.1 of arXiv:1409.1556.
        """
        pixels = images.astype(jnp.float32)
        if shift is not None:
            pixels += shift[:, jnp.newaxis, jnp.newaxis]
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)


# The paper does not divide (section 2.1).
IMAGENET = Normalization(mean=IMAGENET_MEAN, std=(1.0, 1.0, 1.0))


def translate(images: jax.Array, offsets: jax.Array) -> jax.Array:
    """Moves each image by whole pixels; zeros come in: [N, H, W, C] -> [N, H, W, C].

    Args:
        images: preprocessed, so that zero is the mean.
        offsets: int32 [N, 2], how far the window on each image goes down and right.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        places = jnp.arange(size) + offsets[:, axis - 1, jnp.newaxis]  # [N, size]
        places = jnp.expand_dims(places, (3 - axis, 3))
        is_inside = (places >= 0) & (places < size)
        moved = jnp.take_along_axis(images, jnp.clip(places, 0, size - 1), axis=axis)
        images = jnp.where(is_inside, moved, 0)
    return images

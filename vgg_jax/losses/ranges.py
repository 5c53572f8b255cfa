"""This module brings images of any range of values to what a network takes."""

import inspect
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.preprocessing import Normalization

Images = np.ndarray | jax.Array
Range = tuple[float, float]  # of the values of images: those of black and of white

USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # every range lies in those after it


def validate_images(images: Images, input_range: Range, channels: int) -> Range:
    """Checks that images are [N, H, W, channels] and can be of a range.

    What a network has made may overshoot: an error is a value that is further outside
    than half of the range is wide. Values that all lie in a narrower usual range, such
    as 0 to 1 where -1 to 1 is given, are a warning, as a bright image can have them.
    The values of an image that is being traced, as under `jax.jit`, are not known.

    Args:
        images: the images.
        input_range: the values of black and of white.
        channels: how many channels the images must have.

    Returns:
        The range as floats.

    Raises:
        ValueError: another shape, no range, or values that are not of this range.
    """
    try:
        low, high = map(float, input_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            "expected input_range as the values of black and of white, such as "
            f"(-1, 1), got {input_range!r}"
        )
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(
            f"expected images [N, H, W, {channels}], got {list(images.shape)}"
        )
    if isinstance(images, jax.core.Tracer) or 0 in images.shape:
        return low, high
    smallest, largest = float(images.min()), float(images.max())
    values = (
        f"expected images with values from {low:g} to {high:g}, as input_range says, "
        f"got {smallest:g} to {largest:g}"
    )
    slack = (high - low) / 2
    # The extremes of XLA on CPU leave out values that are not numbers.
    is_number = jnp.isfinite if isinstance(images, jax.Array) else np.isfinite
    is_finite = bool(is_number(images).all())
    if not (is_finite and smallest >= low - slack and largest <= high + slack):
        values += "" if is_finite else " and some that are not finite"
        raise ValueError(f"{values}; give the range that the images have")
    narrower = USUAL[: USUAL.index((low, high))] if (low, high) in USUAL else ()
    for darkest, brightest in narrower:
        if darkest <= smallest < largest <= brightest:
            warnings.warn(
                f"{values}; is it input_range=({darkest:g}, {brightest:g})?",
                stacklevel=_levels_to_the_caller(),
            )
            break
    return low, high


def _levels_to_the_caller() -> int:
    """Counts the functions of this package between a warning and who called it."""
    package, _, _ = __name__.rpartition(".")
    frame, levels = inspect.currentframe(), 0
    while frame is not None and frame.f_globals["__name__"].startswith(package):
        frame, levels = frame.f_back, levels + 1
    return levels


def rescale(images: jax.Array, input_range: Range) -> jax.Array:
    """Brings images of a range to 0-1: [N, H, W, C] -> float32 [N, H, W, C]."""
    unit = Normalization(mean=(0.0,), std=(255.0,))
    return normalize(images, input_range, unit)


def normalize(
    images: jax.Array, input_range: Range, normalization: Normalization
) -> jax.Array:
    """Normalizes images of a range: [N, H, W, C] -> float32 [N, H, W, C].

    Args:
        images: the images, of any number type; double precision stays.
        input_range: the values that stand for the gray levels 0 and 255.
        normalization: what is done to gray levels.
    """
    low, high = input_range
    mean, std = np.asarray(normalization.mean), np.asarray(normalization.std)
    grays = 255 / (high - low)  # for 1 of the range
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    slope, intercept = grays / std, (-low * grays - mean) / std
    return images.astype(dtype) * jnp.asarray(slope, dtype) + jnp.asarray(
        intercept, dtype
    )

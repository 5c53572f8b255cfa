"""This module has the contrast normalization and ZCA whitening of NiN's CIFAR data.

arXiv:1312.4400 prepares CIFAR as the maxout networks (arXiv:1302.4389) do, whose
program is pylearn2's `make_cifar10_gcn_whitened.py`: each image has its mean subtracted
and is scaled to the norm 55, all its numbers taken together; then the mean over the
training set is subtracted, and a matrix takes away the correlations between pixels: the
inverse square root of their covariance, to which 0.1 is added along the diagonal. The
files stay as they are: all this is done on the device, on images of one size.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from vgg_jax.config import DataConfig
from vgg_jax.data.color import computed_path
from vgg_jax.files import load_arrays, save_arrays
from vgg_jax.preprocessing import Normalization, Preprocessing

NORM = 55.0  # of an image after its contrast is normalized
VARIANCE_BIAS = 0.1  # added to the variances, so that no noise is blown up
SMALLEST_NORM = 0.5  # of pixels 0-255 that are not all the same; below is rounding
TOOL = "python -m vgg_jax.tools.whitening"


@dataclasses.dataclass(frozen=True, eq=False)
class Whitening:
    """Normalizes the contrast of images of one size, and whitens them.

    Args:
        mean: the mean of the training set at normalized contrast, float32 [H, W, C].
        matrix: the whitening matrix, float32 [H * W * C, H * W * C], symmetric.
    """

    mean: np.ndarray
    matrix: np.ndarray
    digest: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Takes a digest of the arrays, by which values are compared and hashed."""
        content = np.ascontiguousarray(self.mean), np.ascontiguousarray(self.matrix)
        digest = hashlib.sha256(b"".join(array.tobytes() for array in content))
        object.__setattr__(self, "digest", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whitening) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.mean.shape[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """The only height and width that images may have."""
        return self.mean.shape[0], self.mean.shape[1]

    def __call__(self, images: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """Whitens images: [N, H, W, C] with pixels 0-255 -> float32 [N, H, W, C].

        Args:
            images: the images, of any number type, of the size that was measured.
            shift: [N, C] in gray levels, added to the pixels first.

        Raises:
            ValueError: images of another size.
        """
        if images.shape[1:] != self.mean.shape:
            expected, got = (
                "x".join(map(str, s)) for s in (self.mean.shape, images.shape[1:])
            )
            raise ValueError(
                f"expected images of {expected}, which the whitening was computed for, "
                f"got {got}; data.whiten=True works at that size alone, at scale Q = "
                f"{min(self.mean.shape[:2])} and for square images"
            )
        pixels = images.astype(jnp.float32)
        if shift is not None:
            pixels += shift[:, jnp.newaxis, jnp.newaxis]
        rows = (normalize_contrast(pixels) - self.mean).reshape(len(images), -1)
        # In full precision also where products are usually rounded to fewer bits.
        white = jnp.matmul(rows, self.matrix, precision=jax.lax.Precision.HIGHEST)
        return white.reshape(images.shape)


def normalize_contrast(images: jax.Array) -> jax.Array:
    """Subtracts each image's mean and scales it to `NORM`: [N, H, W, C] of one shape.

    An image of one gray level becomes zero.
    """
    axes = (1, 2, 3)
    centered = images - images.mean(axes, keepdims=True)
    norms = jnp.sqrt((centered**2).sum(axes, keepdims=True))
    return centered * (NORM / jnp.where(norms < SMALLEST_NORM, jnp.inf, norms))


def whitening_path(config: DataConfig) -> Path:
    """Returns the hidden file beside the data that `tools.whitening` writes."""
    return computed_path(config, "whitening.npz")


def save_whitening(path: Path, whitening: Whitening) -> None:
    """Writes the statistics for `load_whitening`, whole or not at all."""
    save_arrays(path, {"mean": whitening.mean, "matrix": whitening.matrix})


def load_whitening(config: DataConfig) -> Whitening:
    """Loads the statistics that `tools.whitening` computed for a configuration.

    Raises:
        FileNotFoundError: not computed yet; the message says what to type.
        ValueError: a damaged file, or images of another size.
    """
    path = whitening_path(config)
    remedy = f"type `{TOOL} --config CONFIG` with the flags of this run"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}, which data.whiten=True needs; {remedy}")
    whitening = Whitening(**load_arrays(path, ("mean", "matrix"), TOOL))
    expected = (config.crop, config.crop, len(config.mean))
    if whitening.mean.shape != expected:
        raise ValueError(
            f"expected statistics of images of {expected} in {path}, found "
            f"{whitening.mean.shape}; {remedy}"
        )
    return whitening


def whitening_digest(config: DataConfig) -> str | None:
    """Returns the digest of the statistics that whiten a configuration's images.

    It is None where they are not whitened.

    Raises:
        FileNotFoundError, ValueError: see `load_whitening`.
    """
    return load_whitening(config).digest if config.whiten else None


def preprocessing_of(config: DataConfig) -> Preprocessing:
    """Returns what is done to a configuration's images on the device.

    Raises:
        FileNotFoundError, ValueError: see `load_whitening`.
    """
    if config.whiten:
        return load_whitening(config)
    return Normalization(config.mean, config.std)

"""This module has DISTS (Ding et al. 2020, arXiv:2004.07728) with VGG-16."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.losses.extractor import FeatureExtractor, Maps, validate_pairs
from vgg_jax.losses.lpips import LAYERS as NETWORK_LAYERS
from vgg_jax.losses.published import load_trunk, read_arrays
from vgg_jax.losses.ranges import Images, Range, rescale
from vgg_jax.weights.lineage import TORCHVISION

IMAGE = "image"  # the name of the image itself among the maps
LAYERS = (IMAGE, *NETWORK_LAYERS)
C1 = C2 = 1e-6  # equations (4) and (5): keep quotients of maps without signal at one


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("trunk", "alpha", "beta"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dists:
    """Measures how different two images look, whereby equal textures are equal.

    Means over space of each channel (texture) and its correlation between both images
    (structure) are compared as SSIM does, and the results are averaged over channels of
    all layers and of the image itself with trained weights.

    It is a pytree of its weights, as `FeatureExtractor` is.

    Args:
        trunk: the network, which computes the maps.
        alpha: the weight of each channel's texture in each map, float32 [C].
        beta: the weight of its structure, float32 [C].
    """

    trunk: FeatureExtractor
    alpha: dict[str, jax.Array]
    beta: dict[str, jax.Array]

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        source: str | None = None,
        dtype: Any = "float32",
        remat: bool = False,
    ) -> "Dists":
        """Takes torchvision's VGG-16, for which the weights were trained.

        Args:
            path_or_name: a file of its weights in any format, or a published name such
                as "torchvision/vgg16" or "timm/vgg16".
            source: "torchvision" asserts weights that cannot be recognized.
            dtype: the type that the network computes in, such as "bfloat16"; what is
                compared is float32.
            remat: see `FeatureExtractor`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: weights of another network, or of another lineage.
        """
        trunk = FeatureExtractor.from_model(
            load_trunk(path_or_name, source),
            NETWORK_LAYERS,
            TORCHVISION,
            pools="l2",
            dtype=dtype,
            remat=remat,
        )
        arrays = read_arrays("dists_vgg16")
        alpha, beta = (
            {name: jnp.asarray(arrays[f"{weight}.{name}"]) for name in LAYERS}
            for weight in ("alpha", "beta")
        )
        return cls(trunk=trunk, alpha=alpha, beta=beta)

    def __call__(self, x: Images, y: Images, *, input_range: Range) -> jax.Array:
        """Computes the distance of each image to its partner.

        Two arrays [N, H, W, 3] -> float32 [N].

        Args:
            x, y: images in RGB, of the same sizes.
            input_range: the values of black and of white, see `FeatureExtractor`.

        Raises:
            ValueError: images of different sizes, of another range, or too small.
        """
        return self.distance(
            self.features(x, input_range=input_range),
            self.features(y, input_range=input_range),
        )

    def features(self, images: Images, *, input_range: Range) -> Maps:
        """Computes what `distance` compares: [N, H, W, 3] -> {name: [N, h, w, C]}.

        Args:
            images: images in RGB.
            input_range: the values of black and of white, see `FeatureExtractor`.

        Raises:
            ValueError: images of another shape or range, or too small.
        """
        maps = self.trunk(images, input_range=input_range)
        return {IMAGE: rescale(jnp.asarray(images), input_range)} | maps

    def distance(self, x: Mapping[str, Any], y: Mapping[str, Any]) -> jax.Array:
        """Computes the distances of images from their `features` -> float32 [N].

        Raises:
            ValueError: features of images of different sizes.
        """
        validate_pairs(x, y, tuple(self.alpha))
        return _distance(self.alpha, self.beta, dict(x), dict(y))


@jax.jit
def _distance(alpha: Maps, beta: Maps, x: Maps, y: Maps) -> jax.Array:
    total = sum(jnp.sum(w) for weights in (alpha, beta) for w in weights.values())
    similarity = jnp.zeros((), jnp.float32)
    for name in alpha:
        texture, structure = _similarities(x[name], y[name])
        similarity += jnp.sum(texture * alpha[name] + structure * beta[name], axis=-1)
    return 1 - similarity / total


def _similarities(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compares channels of maps [N, h, w, C]: texture and structure, each [N, C]."""
    x, y = (m.astype(jnp.promote_types(m.dtype, jnp.float32)) for m in (x, y))
    x_mean, y_mean = (m.mean(axis=(1, 2), keepdims=True) for m in (x, y))
    x_rest, y_rest = x - x_mean, y - y_mean
    x_variance, y_variance, covariance = (
        (a * b).mean(axis=(1, 2))
        for a, b in ((x_rest, x_rest), (y_rest, y_rest), (x_rest, y_rest))
    )
    x_mean, y_mean = (m[:, 0, 0] for m in (x_mean, y_mean))
    texture = (2 * x_mean * y_mean + C1) / (x_mean**2 + y_mean**2 + C1)
    structure = (2 * covariance + C2) / (x_variance + y_variance + C2)
    return texture, structure

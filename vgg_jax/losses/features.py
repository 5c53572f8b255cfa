"""This module compares maps of features, and their correlations, and images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.console import did_you_mean
from vgg_jax.losses.extractor import validate_pairs

Weights = Mapping[str, float]  # the weight of each layer by its name

ERRORS = ("squared", "absolute")
# What the sums over positions are divided by: h * w (Gatys et al.), or C * h * w
# (Johnson et al.).
GRAM_NORMALIZATIONS = ("positions", "elements")


def feature_loss(
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    weights: Weights,
    *,
    error: str = "squared",
) -> jax.Array:
    """Compares maps of features (Johnson et al. 2016, arXiv:1603.08155, equation 2).

    The errors are averaged over each map, [N, h, w, C], and summed over layers with
    their weights: float32 [N].

    Args:
        x, y: maps as `FeatureExtractor` gives them, of images of the same sizes.
        weights: the weight of each layer that counts.
        error: "squared", or "absolute" as ESRGAN does with "conv5_4".

    Raises:
        ValueError: maps that are missing or of other sizes, or an unknown error.
    """
    validate_pairs(x, y, tuple(weights))
    losses = [
        weight * _errors(x[name], y[name], error).mean(axis=(1, 2, 3))
        for name, weight in weights.items()
    ]
    return jnp.sum(jnp.stack(losses), axis=0)


def gram_matrix(maps: jax.Array, *, normalization: str) -> jax.Array:
    """Computes the inner products of channels: [N, h, w, C] -> float32 [N, C, C].

    Args:
        maps: the map of one layer.
        normalization: what the sums over positions are divided by: "positions", h * w,
            or "elements", C * h * w.

    Raises:
        ValueError: an unknown normalization; the message has the nearest.
    """
    if normalization not in GRAM_NORMALIZATIONS:
        raise ValueError(
            f"unknown normalization {normalization!r}: "
            + did_you_mean(normalization, GRAM_NORMALIZATIONS)
        )
    _, height, width, channels = maps.shape
    count = height * width * (channels if normalization == "elements" else 1)
    sums = jnp.einsum(
        "nhwi,nhwj->nij",
        maps,
        maps,
        preferred_element_type=jnp.promote_types(maps.dtype, jnp.float32),
    )
    return sums / count


def gram_matrices(
    maps: Mapping[str, Any], *, normalization: str
) -> dict[str, jax.Array]:
    """Computes the `gram_matrix` of each layer's map, by the names of the layers."""
    return {
        name: gram_matrix(layer, normalization=normalization)
        for name, layer in maps.items()
    }


def style_loss(
    x: Mapping[str, Any], y: Mapping[str, Any], weights: Weights
) -> jax.Array:
    """Compares Gram matrices (Gatys et al. 2015, arXiv:1508.06576): float32 [N].

    The squared errors are averaged over each matrix, and summed over layers with their
    weights. With `normalization="positions"` a layer's term is four times that of Gatys
    et al.; with "elements" it is that of Johnson et al. divided by C * C.

    Args:
        x, y: the `gram_matrices` of images, which may be of different sizes; those of
            one style serve N images.
        weights: the weight of each layer that counts.

    Raises:
        ValueError: matrices that are missing or of other networks.
    """
    validate_pairs(x, y, tuple(weights))
    losses = [
        weight * jnp.square(x[name] - y[name]).mean(axis=(1, 2))
        for name, weight in weights.items()
    ]
    return jnp.sum(jnp.stack(losses), axis=0)


def total_variation(images: jax.Array, *, error: str = "absolute") -> jax.Array:
    """Sums the differences of neighboring pixels: [N, H, W, C] -> float32 [N].

    Args:
        images: the images.
        error: "absolute", or "squared", which forbids edges.

    Raises:
        ValueError: an unknown error; the message has the nearest.
    """
    rows = _errors(images[:, 1:], images[:, :-1], error)
    columns = _errors(images[:, :, 1:], images[:, :, :-1], error)
    return rows.sum(axis=(1, 2, 3)) + columns.sum(axis=(1, 2, 3))


def _errors(x: jax.Array, y: jax.Array, error: str) -> jax.Array:
    """Returns the error of each element, float32 at least."""
    if error not in ERRORS:
        raise ValueError(f"unknown error {error!r}: {did_you_mean(error, ERRORS)}")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    differences = x.astype(dtype) - y.astype(dtype)
    if error == "squared":
        return jnp.square(differences)
    # The gradient of `jnp.abs` at zero is one: equal images would be driven apart.
    return differences * jnp.sign(jax.lax.stop_gradient(differences))

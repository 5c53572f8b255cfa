"""This package has losses that compare images by the features of a network."""

from vgg_jax.losses.dists import Dists
from vgg_jax.losses.extractor import POOLS, FeatureExtractor
from vgg_jax.losses.features import (
    ERRORS,
    GRAM_NORMALIZATIONS,
    feature_loss,
    gram_matrices,
    gram_matrix,
    style_loss,
    total_variation,
)
from vgg_jax.losses.lpips import Lpips

__all__ = [
    "ERRORS",
    "GRAM_NORMALIZATIONS",
    "POOLS",
    "Dists",
    "FeatureExtractor",
    "Lpips",
    "feature_loss",
    "gram_matrices",
    "gram_matrix",
    "style_loss",
    "total_variation",
]

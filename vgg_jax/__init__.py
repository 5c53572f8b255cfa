"""VGG and Network in Network in JAX: the networks, their training, their evaluation."""

from vgg_jax.features.descriptors import descriptor
from vgg_jax.inference.dense import dense_posteriors
from vgg_jax.inference.tiling import tiled_score_map
from vgg_jax.models import MODELS, VGG, ConvNet, NiN, nin, vgg
from vgg_jax.models.measure import receptive_field, summary
from vgg_jax.version import __version__
from vgg_jax.weights.create import create_model
from vgg_jax.weights.load import Loaded, load_weights

__all__ = [
    "MODELS",
    "VGG",
    "ConvNet",
    "Loaded",
    "NiN",
    "__version__",
    "create_model",
    "dense_posteriors",
    "descriptor",
    "load_weights",
    "nin",
    "receptive_field",
    "summary",
    "tiled_score_map",
    "vgg",
]

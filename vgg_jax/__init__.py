"""VGG and Network in Network in JAX: the networks, their training, their evaluation."""

from vgg_jax.models import MODELS, VGG, ConvNet, NiN, create_model

__all__ = ["MODELS", "VGG", "ConvNet", "NiN", "create_model"]
__version__ = "0.1.0"

"""This package reads and writes weights of other projects' VGGs and NiNs."""

from vgg_jax.weights.create import create_model
from vgg_jax.weights.fetch import fetch
from vgg_jax.weights.load import Loaded, load_weights
from vgg_jax.weights.pretrained import from_pretrained, push, save_pretrained
from vgg_jax.weights.published import PUBLISHED, Published
from vgg_jax.weights.save import save_weights

__all__ = [
    "PUBLISHED",
    "Loaded",
    "Published",
    "create_model",
    "fetch",
    "from_pretrained",
    "load_weights",
    "push",
    "save_pretrained",
    "save_weights",
]

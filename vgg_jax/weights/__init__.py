"""This package reads and writes weights of other projects' VGGs and NiNs."""

from vgg_jax.weights.load import Loaded, load_weights

__all__ = ["Loaded", "load_weights"]

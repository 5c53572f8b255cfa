"""This module finds out which network of the papers a file has the weights of."""

from typing import NamedTuple

from vgg_jax.models import ConvNet
from vgg_jax.weights.contents import Contents
from vgg_jax.weights.load import (
    Fit,
    abstract_network,
    fit,
    known_networks,
    num_classes_in,
)


class Recognized(NamedTuple):
    """A network whose weights a file has.

    Args:
        network: its name, a key of `MODELS`.
        num_classes: the outputs of the file's last layer; None for a backbone.
        model: the network, without values.
        fit: where the weights are in the file.
    """

    network: str
    num_classes: int | None
    model: ConvNet
    fit: Fit

    def __str__(self) -> str:
        """Names the network and what it is in the file."""
        if self.num_classes is None:
            return f"{self.network} without its classifier"
        return f"{self.network} with {self.num_classes:,} classes"


def recognize_network(contents: Contents) -> Recognized | None:
    """Finds the network that a file has the weights of, by their names and shapes.

    Networks with the same weights, such as vgg11 and vgg11_lrn, cannot be told apart;
    the first of `MODELS` is taken.
    """
    candidates = []
    for name, model in known_networks().items():
        names = fit(model, contents)
        classes = num_classes_in(model, contents, names.found)
        if not names.problems and classes is not None:
            model = abstract_network(name, num_classes=classes)
            return Recognized(name, classes, model, fit(model, contents))
        if names.found.found:
            candidates.append(name)
    for name in candidates:
        model = abstract_network(name, num_classes=None)
        names = fit(model, contents)
        if not names.problems:
            return Recognized(name, None, model, names)
    return None

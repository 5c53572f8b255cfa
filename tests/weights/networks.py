"""Small networks with random weights, made without compiling anything."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.models import ConvNet
from vgg_jax.weights.load import abstract_network


def random_network(name: str = "vgg11", seed: int = 0, **options: object) -> ConvNet:
    """A network whose every array has other values; narrow unless `width` says more."""
    options = {"num_classes": 5, "width": 1 / 16, **options}
    model = abstract_network(name, **options)
    random = np.random.default_rng(seed)
    state = nnx.to_flat_state(nnx.state(model))
    for _, variable in state:
        shape = variable.get_value().shape
        variable.set_value(jnp.asarray(random.random(shape, np.float32)))
    nnx.update(model, nnx.from_flat_state(state))
    return model


def assert_same_weights(first: ConvNet, second: ConvNet) -> None:
    """Both have the same arrays, bit by bit."""
    states = [dict(nnx.to_flat_state(nnx.state(model))) for model in (first, second)]
    assert states[0].keys() == states[1].keys()
    for path, variable in states[0].items():
        np.testing.assert_array_equal(variable[...], states[1][path][...], str(path))

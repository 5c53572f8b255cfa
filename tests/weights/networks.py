"""Small networks, and their arrays as weights of others are compared with them."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax import create_model
from vgg_jax.models import ConvNet
from vgg_jax.weights.load import abstract_network

Layers = dict[str, dict[str, np.ndarray]]


@functools.cache
def network(name: str, **options: object) -> ConvNet:
    """A network of zeros that tests fill one after another."""
    options = {"num_classes": 5, "width": 1 / 16, **options}
    # Drawing weights for all of them would take a minute of compilation.
    shapes = nnx.eval_shape(
        lambda: create_model(name, rngs=jax.random.key(0), **options)
    )
    definition, state = nnx.split(shapes)
    return nnx.merge(definition, jax.tree.map(_zeros, state))


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))


def arrays_of(model: ConvNet) -> Layers:
    """The arrays that a network has, by its rows and their variables."""
    state = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {
        row.name: {name: np.array(array) for name, array in state[row.name].items()}
        for row in model.layers
        if row.name in state
    }


def drawn(model: ConvNet) -> Layers:
    """Other values for all arrays of a network, of which no two are alike."""
    return {
        row: {
            name: np.random.default_rng(zlib.crc32(f"{row}.{name}".encode()))
            .random(array.shape)
            .astype(np.float32)
            for name, array in arrays.items()
        }
        for row, arrays in arrays_of(model).items()
    }


def assert_has(model: ConvNet, expected: Layers) -> None:
    """Every array of the network is the expected one."""
    found = arrays_of(model)
    assert {row: set(arrays) for row, arrays in found.items()} == {
        row: set(arrays) for row, arrays in expected.items()
    }
    for row, arrays in expected.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[row][name], array, f"{row}.{name}")


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

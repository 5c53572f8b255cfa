"""This module has the optimizers; the host sets their rate between two steps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from vgg_jax.config import OptimizerConfig
from vgg_jax.console import did_you_mean
from vgg_jax.models.layers import Dropout, Layer

Rate = float | jax.Array


def sgd(rate: Rate, config: OptimizerConfig) -> optax.GradientTransformation:
    """Makes SGD with momentum and coupled L2, as in section 3.1 of arXiv:1409.1556.

    v <- momentum * v + (gradient + weight_decay * w);  w <- w - rate * v.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, config.momentum),
    )


def lars(rate: Rate, config: OptimizerConfig) -> optax.GradientTransformation:
    """Makes LARS (arXiv:1708.03888), where a gradient counts relative to its kernel.

    What it adds to the momentum, with the penalty, has a length of the rate times
    `trust_coefficient` times that of the kernel. As is usual, biases and batch
    normalization are left to plain momentum: they have neither weight decay nor a trust
    ratio.
    """
    return optax.lars(
        rate,
        weight_decay=config.weight_decay,
        weight_decay_mask=_kernels,
        trust_coefficient=config.trust_coefficient,
        trust_ratio_mask=_kernels,
        momentum=config.momentum,
    )


def adamw(rate: Rate, config: OptimizerConfig) -> optax.GradientTransformation:
    """Makes Adam with decoupled weight decay of every parameter (arXiv:1711.05101)."""
    return optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


# The values of `optimizer.name`.
OPTIMIZERS: Mapping[
    str, Callable[[Rate, OptimizerConfig], optax.GradientTransformation]
] = {"sgd": sgd, "lars": lars, "adamw": adamw}


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the optimizer that `config.name` names.

    The rate is part of the state: `set_learning_rate` changes it without a recompile.

    Raises:
        ValueError: there is no such optimizer; the message names the nearest.
    """
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer.name {config.name!r}: "
            f"{did_you_mean(config.name, OPTIMIZERS)}"
        )

    def with_rate(learning_rate: Rate) -> optax.GradientTransformation:
        optimizer = OPTIMIZERS[config.name](learning_rate, config)
        if not config.layer_rates:
            return optimizer
        return optax.chain(optimizer, optax.stateless(scale_layers))

    def scale_layers(updates: dict[str, Any], params: Any) -> dict[str, Any]:
        """Multiplies each layer's update, to which its rate is a factor."""
        return {
            layer: optax.tree.scale(multiple, updates[layer])
            for layer, multiple in layer_multiples(config, updates).items()
        }

    return optax.inject_hyperparams(with_rate)(learning_rate=config.learning_rate)


def layer_multiples(config: OptimizerConfig, layers: Iterable[str]) -> dict[str, float]:
    """Returns what the learning rate of each of these layers is multiplied by.

    Of the beginnings of a layer's name in `config.layer_rates` the longest counts.
    """

    def multiple(layer: str) -> float:
        fitting = [name for name in config.layer_rates if layer.startswith(name)]
        return config.layer_rates[max(fitting, key=len)] if fitting else 1.0

    return {layer: multiple(layer) for layer in layers}


def trained_layers(config: OptimizerConfig, layers: Sequence[str]) -> tuple[str, ...]:
    """Returns which of a network's layers are trained; () where all are.

    Args:
        config: names them, and gives some a rate of 0.
        layers: the names of the layers that have parameters.

    Raises:
        ValueError: a rate is of no layer, or no layer is trained.
    """
    for name in config.layer_rates:
        if not any(layer.startswith(name) for layer in layers):
            raise ValueError(
                f"optimizer.layer_rates: no weights of a layer {name!r}, nor of one "
                f"that begins so: {did_you_mean(name, layers)}"
            )
    multiples = layer_multiples(config, config.trained_layers or layers)
    trained = tuple(layer for layer, multiple in multiples.items() if multiple)
    if not trained:
        raise ValueError(
            "optimizer.layer_rates gives every layer that is to be trained a rate of 0"
        )
    return () if set(trained) == set(layers) else trained


def rows_at_rest(layers: Sequence[Layer], trained_layers: Sequence[str]) -> int:
    """Returns the number of rows before the first that learns.

    Dropout just before a layer that learns is part of its training.

    Args:
        layers: the rows of a network.
        trained_layers: the layers that learn; () for all.

    Raises:
        ValueError: the first layer learns, so that no map stays the same.
    """
    names = [row.name for row in layers]
    count = min((names.index(name) for name in trained_layers), default=0)
    while count and isinstance(layers[count - 1], Dropout):
        count -= 1
    if not count:
        raise ValueError(
            "optimizer.keep_maps is for runs whose first layers rest: expected the "
            "names of the last layers in optimizer.trained_layers, got "
            f"{tuple(trained_layers)}"
        )
    return count


def learning_rate(state: optax.InjectStatefulHyperparamsState) -> jax.Array:
    """Returns the rate that the next update uses, a float32 scalar."""
    return state.hyperparams["learning_rate"]


def set_learning_rate(
    state: optax.InjectStatefulHyperparamsState, rate: float
) -> optax.InjectStatefulHyperparamsState:
    """Returns an optimizer's state with another learning rate, on the same devices."""
    old = learning_rate(state)
    value = np.asarray(rate, old.dtype)
    # Unlike device_put, this does not make several hosts wait for one another.
    new = jax.make_array_from_callback((), old.sharding, lambda _: value)
    return state._replace(hyperparams=state.hyperparams | {"learning_rate": new})


def _kernels(params: Any) -> Any:
    """Says of each parameter whether it is a kernel: biases and scales are vectors."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)

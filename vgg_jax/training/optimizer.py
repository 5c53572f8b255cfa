"""SGD with momentum and coupled L2, and a rate that falls on plateaus (section 3.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from vgg_jax.config import OptimizerConfig
from vgg_jax.console import did_you_mean


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """v <- momentum * v + (gradient + weight_decay * w);  w <- w - rate * v.

    The rate is part of the state: `set_learning_rate` changes it without a recompile.
    With `trained_layers` the weights of the others stay; `init` raises a ValueError
    where there is no layer of such a name.
    """

    def others(params: Mapping[str, Any]) -> dict[str, bool]:
        for name in config.trained_layers:
            if name not in params:
                raise ValueError(
                    f"optimizer.trained_layers: no weights of a layer {name!r}: "
                    f"{did_you_mean(name, params)}"
                )
        return {name: name not in config.trained_layers for name in params}

    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(decay=config.momentum),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(
            learning_rate=config.learning_rate
        ),
        *([optax.masked(optax.set_to_zero(), others)] * bool(config.trained_layers)),
    )


def learning_rate(state: optax.OptState) -> jax.Array:
    """The rate that the next update uses."""
    return optax.tree.get(state, "learning_rate")


def set_learning_rate(state: optax.OptState, rate: float) -> optax.OptState:
    """The same state with another rate, on the same devices."""
    old = learning_rate(state)
    # Of a JAX array device_put makes one that cannot be saved, where each process has
    # one device; of a NumPy number not.
    new = jax.device_put(np.asarray(rate, old.dtype), old.sharding)
    return optax.tree.set(state, learning_rate=new)


@dataclasses.dataclass
class Plateau:
    """Watches the validation error; says when the rate falls and when to stop.

    The paper: "decreased by a factor of 10 when the validation set accuracy stopped
    improving", three times in all; the plateau after the last fall ends the training.
    """

    best: float = float("inf")
    waited: int = 0  # validations since the best
    drops: int = 0  # falls of the rate so far
    finished: bool = False

    def update(self, error: float, config: OptimizerConfig) -> None:
        """Take one validation error, a fraction, into account."""
        if error < self.best - config.plateau_min_delta:
            self.best = error
            self.waited = 0
            return
        self.waited += 1
        if self.waited >= config.plateau_patience:
            self.waited = 0
            if self.drops < config.plateau_drops:
                self.drops += 1
            else:
                self.finished = True

    def rate(self, config: OptimizerConfig) -> float:
        """The learning rate now."""
        return config.learning_rate * config.plateau_factor**self.drops

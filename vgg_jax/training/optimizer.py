"""SGD with momentum and coupled L2, and a rate that falls on plateaus (section 3.1)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from vgg_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """v <- momentum * v + (gradient + weight_decay * w);  w <- w - rate * v.

    The rate is part of the state: `set_learning_rate` changes it without a recompile.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(decay=config.momentum),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(
            learning_rate=config.learning_rate
        ),
    )


def learning_rate(state: optax.OptState) -> jax.Array:
    """The rate that the next update uses."""
    return optax.tree.get(state, "learning_rate")


def set_learning_rate(state: optax.OptState, rate: float) -> optax.OptState:
    """The same state with another rate, on the same devices."""
    old = learning_rate(state)
    new = jax.device_put(jnp.asarray(rate, old.dtype), old.sharding)
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

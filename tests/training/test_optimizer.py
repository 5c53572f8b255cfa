"""The optimizers against hand-written loops, over a change of their rate."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_jax.config import OptimizerConfig
from vgg_jax.training.optimizer import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
)

# One parameter's value and gradient, the rate, the step from 1 and what the optimizer
# keeps of the parameter -> the value after the step.
Update = Callable[[np.ndarray, np.ndarray, float, int, dict], np.ndarray]


def follow(config: OptimizerConfig, update_by_hand: Update) -> None:
    """Compares six steps, the last three of them at a hundredth of the rate."""
    optimizer = make_optimizer(config)
    params = {
        "kernel": jnp.array([[1.0, -2.0], [0.25, 3.0]]),
        "bias": jnp.array([0.5, 0.0]),
    }
    state = optimizer.init(params)

    @jax.jit
    @chex.assert_max_traces(n=1)  # another rate does not recompile
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    kept: dict = {name: {} for name in expected}
    rng = np.random.default_rng(0)
    for step in range(1, 7):
        rate = config.learning_rate * (1 if step <= 3 else 0.01)
        if step == 4:
            state = set_learning_rate(state, rate)
        gradients = {name: rng.normal(size=v.shape) for name, v in expected.items()}
        params, state = update(params, state, jax.tree.map(jnp.float32, gradients))
        for name, gradient in gradients.items():
            expected[name] = update_by_hand(
                expected[name], gradient, rate, step, kept[name]
            )
        chex.assert_trees_all_close(params, expected, rtol=1e-5)
    assert learning_rate(state) == np.float32(config.learning_rate * 0.01)


def test_sgd_momentum_and_coupled_l2_over_a_drop_of_the_rate() -> None:
    def sgd(w, gradient, rate, step, kept):
        velocity = 0.9 * kept.get("velocity", 0) + gradient + 0.05 * w
        kept["velocity"] = velocity
        return w - rate * velocity

    follow(OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.05), sgd)
    assert OptimizerConfig().name == "sgd"


def test_lars_scales_the_step_of_a_kernel_to_its_length() -> None:
    def lars(w, gradient, rate, step, kept):
        if w.ndim > 1:
            gradient = gradient + 0.05 * w
            gradient *= 0.02 * np.linalg.norm(w) / np.linalg.norm(gradient)
        velocity = 0.8 * kept.get("velocity", 0) + rate * gradient
        kept["velocity"] = velocity
        return w - velocity

    config = OptimizerConfig(
        name="lars",
        learning_rate=2.0,
        momentum=0.8,
        weight_decay=0.05,
        trust_coefficient=0.02,
    )
    follow(config, lars)


def test_adamw_corrects_its_means_and_decays_apart_from_them() -> None:
    def adamw(w, gradient, rate, step, kept):
        mean = 0.8 * kept.get("mean", 0) + 0.2 * gradient
        square = 0.95 * kept.get("square", 0) + 0.05 * gradient**2
        kept |= {"mean": mean, "square": square}
        root = np.sqrt(square / (1 - 0.95**step))
        return w - rate * (mean / (1 - 0.8**step) / (root + 1e-3) + 0.05 * w)

    config = OptimizerConfig(
        name="adamw",
        learning_rate=0.1,
        weight_decay=0.05,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-3,
    )
    follow(config, adamw)


def test_an_unknown_optimizer_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer\.name 'adam'.*'adamw'"):
        make_optimizer(OptimizerConfig(name="adam"))

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
    OPTIMIZERS,
    layer_multiples,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    trained_layers,
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layer_learns_at_its_own_multiple_of_the_rate(name: str) -> None:
    params = {
        layer: {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5, 0.1])}
        for layer in ("conv1_1", "conv1_2", "conv5_1", "fc8")
    }
    rates = {"conv": 0.1, "conv1_2": 0.3, "fc": 2.0}
    expected_multiples = {"conv1_1": 0.1, "conv1_2": 0.3, "conv5_1": 0.1, "fc8": 2.0}

    def train(optimizer: optax.GradientTransformation, tree: dict) -> dict:
        state = optimizer.init(tree)
        update = jax.jit(optimizer.update)
        for step in range(4):
            if step == 2:  # as a schedule does
                state = set_learning_rate(state, learning_rate(state) / 10)
            gradients = jax.tree.map(lambda p, i=step: p * (i - 1.5), tree)
            updates, state = update(gradients, state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree

    config = OptimizerConfig(name=name, learning_rate=0.1, layer_rates=rates)
    got = train(make_optimizer(config), params)
    for layer, multiple in expected_multiples.items():
        alone = OptimizerConfig(name=name, learning_rate=0.1 * multiple)
        want = train(make_optimizer(alone), {layer: params[layer]})
        chex.assert_trees_all_close(got[layer], want[layer], rtol=1e-5)


def test_sgd_with_a_layer_at_a_tenth_of_the_rate_by_hand() -> None:
    config = OptimizerConfig(
        learning_rate=0.1, momentum=0.5, weight_decay=0.0, layer_rates={"conv": 0.1}
    )
    optimizer = make_optimizer(config)
    params = {"conv1_1": {"bias": jnp.ones(1)}, "fc8": {"bias": jnp.ones(1)}}
    state = optimizer.init(params)
    for _ in range(2):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    # The velocities are 1 and 1.5.
    assert float(params["conv1_1"]["bias"][0]) == pytest.approx(1 - 0.01 * 2.5)
    assert float(params["fc8"]["bias"][0]) == pytest.approx(1 - 0.1 * 2.5)


def test_the_longest_beginning_of_a_name_says_its_rate() -> None:
    layers = ("conv1_1", "conv5_1", "bn5_1", "fc6", "fc8")
    config = OptimizerConfig(layer_rates={"conv": 0.0, "conv5": 0.1, "fc8": 3.0})
    assert list(layer_multiples(config, layers).values()) == [0, 0.1, 1, 1, 3]
    assert trained_layers(config, layers) == ("conv5_1", "bn5_1", "fc6", "fc8")
    assert trained_layers(OptimizerConfig(), layers) == ()
    chosen = OptimizerConfig(trained_layers=("fc6", "fc8"), layer_rates={"fc6": 0.0})
    assert trained_layers(chosen, layers) == ("fc8",)
    for wrong, message in (
        ({"cov": 1.0}, "no weights of a layer 'cov', nor of one that begins so"),
        ({"": 0.0}, "every layer that is to be trained a rate of 0"),
    ):
        with pytest.raises(ValueError, match=message):
            trained_layers(OptimizerConfig(layer_rates=wrong), layers)

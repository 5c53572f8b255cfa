"""The optimizer against a hand-written loop, and the plateau's rules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_jax.config import OptimizerConfig
from vgg_jax.training.optimizer import (
    Plateau,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)


def test_sgd_momentum_and_coupled_l2_over_a_drop_of_the_rate() -> None:
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    state = optimizer.init(params)

    @jax.jit
    @chex.assert_max_traces(n=1)  # a drop of the rate does not recompile
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in expected.items()}
    rng = np.random.default_rng(0)
    for step in range(6):
        rate = 0.1 if step < 3 else 0.01
        if step == 3:
            state = set_learning_rate(state, rate)
        gradients = {name: rng.normal(size=v.shape) for name, v in expected.items()}
        params, state = update(params, state, jax.tree.map(jnp.float32, gradients))
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient + 0.05 * expected[name]
            expected[name] = expected[name] - rate * velocity[name]
        chex.assert_trees_all_close(params, expected, rtol=1e-5)
    assert learning_rate(state) == np.float32(0.01)


def run_plateau(errors: list[float], **settings: float) -> list[tuple[float, bool]]:
    config = OptimizerConfig(learning_rate=1.0, **settings)  # type: ignore[arg-type]
    plateau = Plateau()
    seen = []
    for error in errors:
        plateau.update(error, config)
        seen.append((round(plateau.rate(config), 6), plateau.finished))
    return seen


def test_rate_falls_only_after_patience_runs_out() -> None:
    seen = run_plateau(
        [0.5, 0.4, 0.4, 0.41, 0.3, 0.3, 0.3, 0.3],
        plateau_patience=3,
        plateau_min_delta=0.0,
    )
    assert [rate for rate, _ in seen] == [1, 1, 1, 1, 1, 1, 1, 0.1]


def test_improvement_smaller_than_min_delta_does_not_count() -> None:
    seen = run_plateau(
        [0.5, 0.4995, 0.499], plateau_patience=2, plateau_min_delta=0.005
    )
    assert [rate for rate, _ in seen] == [1, 1, 0.1]


def test_patience_begins_anew_after_a_fall() -> None:
    seen = run_plateau([0.5] * 7, plateau_patience=3, plateau_drops=3)
    assert [rate for rate, _ in seen] == [1, 1, 1, 0.1, 0.1, 0.1, 0.01]


def test_three_falls_then_the_end() -> None:
    seen = run_plateau([0.5] * 6, plateau_patience=1, plateau_drops=3)
    assert [rate for rate, _ in seen] == [1, 0.1, 0.01, 0.001, 0.001, 0.001]
    assert [finished for _, finished in seen] == [False] * 4 + [True] * 2


def test_an_error_that_is_not_a_number_is_no_improvement() -> None:
    seen = run_plateau([float("nan"), float("nan")], plateau_patience=2)
    assert seen[-1][0] == pytest.approx(0.1)


def test_layers_that_are_not_trained_stay() -> None:
    config = OptimizerConfig(learning_rate=0.1, trained_layers=("fc7", "fc8"))
    optimizer = make_optimizer(config)
    params = {
        name: {"kernel": jnp.ones(2), "bias": jnp.ones(1)}
        for name in ("conv1_1", "fc7", "fc8")
    }
    state = optimizer.init(params)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, state = optimizer.update(gradients, state, params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates["conv1_1"]))
    plain = make_optimizer(OptimizerConfig(learning_rate=0.1))
    trained, _ = plain.update(gradients, plain.init(params), params)
    for name in ("fc7", "fc8"):
        chex.assert_trees_all_equal(updates[name], trained[name])
    assert float(learning_rate(set_learning_rate(state, 0.5))) == 0.5


def test_an_unknown_layer_is_named() -> None:
    optimizer = make_optimizer(OptimizerConfig(trained_layers=("fc9",)))
    with pytest.raises(ValueError, match=r"no weights of a layer 'fc9'.*fc8"):
        optimizer.init({"fc7": jnp.ones(1), "fc8": jnp.ones(1)})

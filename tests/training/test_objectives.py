"""Sums of loss and errors against a computation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.training.objectives import classification_sums, localization_sums, means


def test_against_sorting_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 12)).astype(np.float32)
    labels = rng.integers(0, 12, 40).astype(np.int32)
    weights = (rng.random(40) < 0.7).astype(np.float32)
    got = means(classification_sums(*map(jnp.asarray, (logits, labels, weights))))
    order = np.argsort(-logits, axis=1)
    top1 = order[:, 0] != labels
    top5 = ~(order[:, :5] == labels[:, None]).any(axis=1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_p[np.arange(40), labels]
    for name, values in (("top1_error", top1), ("top5_error", top5), ("loss", loss)):
        np.testing.assert_allclose(
            got[name], (values * weights).sum() / weights.sum(), rtol=1e-5
        )


def test_ties_and_numbers_that_are_none_are_errors() -> None:
    logits = jnp.array([[1.0] * 10, [jnp.nan] * 10])
    sums = classification_sums(logits, jnp.array([0, 0]), jnp.ones(2))
    assert float(sums["top1_error"]) == 2 and float(sums["top5_error"]) == 2


def test_no_example_has_no_mean() -> None:
    sums = classification_sums(jnp.ones((2, 3)), jnp.array([0, 1]), jnp.zeros(2))
    assert np.isnan(means(sums)["loss"])


def boxes_of(outputs: list, labels: list, targets: list, weights: list) -> dict:
    arrays = (jnp.float32(outputs), jnp.array(labels), jnp.float32(targets))
    sums = localization_sums(*arrays, jnp.float32(weights))
    return {name: float(value) for name, value in sums.items()}


HERE = [0.0, 0.0, 0.4, 0.4]
ASIDE = [0.2, 0.0, 0.4, 0.4]  # a third of the union with HERE


def test_localization_sums_by_hand() -> None:
    rows = [HERE + ASIDE, ASIDE + HERE, HERE + ASIDE, ASIDE + ASIDE]
    sums = boxes_of(rows, [0, 0, 1, 1], [HERE] * 4, [1, 1, 1, 0])
    # Rows 1 and 2 are 0.2 off; row 3 does not count.
    assert sums == pytest.approx({"loss": 0.04, "box_error": 2, "weight": 3})


def test_one_box_stands_for_every_class() -> None:
    sums = boxes_of([HERE, ASIDE], [0, 7], [HERE] * 2, [1, 1])
    assert sums == pytest.approx({"loss": 0.02, "box_error": 1, "weight": 2})


def test_an_object_outside_the_crop_has_no_loss() -> None:
    targets = [[0.4, 0.0, 0.4, 0.4], [0.52, 0.0, 0.4, 0.4]]  # 3/4 of it inside, 9/20
    sums = boxes_of([HERE] * 2, [0, 0], targets, [1, 1])
    assert sums == pytest.approx({"loss": 0.08, "box_error": 2, "weight": 2})


def test_the_gradient_is_the_distance_of_the_own_classs_box() -> None:
    outputs = jnp.float32([HERE + ASIDE])

    def loss(outputs: jax.Array) -> jax.Array:
        target = jnp.float32([[0.1, 0.1, 0.5, 0.2]])
        sums = localization_sums(outputs, jnp.array([1]), target, jnp.ones(1))
        return sums["loss"]

    expected = [[0, 0, 0, 0, 0.1, -0.1, -0.1, 0.2]]
    np.testing.assert_allclose(jax.grad(loss)(outputs), expected, atol=1e-6)


def test_boxes_that_are_not_numbers_are_wrong() -> None:
    sums = boxes_of([[np.nan] * 4], [0], [HERE], [1])
    assert sums["box_error"] == 1 and np.isnan(sums["loss"])

"""Sums of loss and errors against a computation by hand."""

import jax.numpy as jnp
import numpy as np

from vgg_jax.metrics import classification_sums, means


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

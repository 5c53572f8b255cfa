"""The mean of posteriors."""

import chex
import numpy as np
import pytest

from vgg_jax.evaluation.predictions import Predictions, fuse


def make(
    posteriors: list[list[float]], labels: list[int], weights: list[float]
) -> Predictions:
    return Predictions(
        posteriors=np.array(posteriors, np.float32),
        labels=np.array(labels, np.int32),
        weights=np.array(weights, np.float32),
    )


def test_fuse_is_the_mean_of_posteriors() -> None:
    a = make([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], [0, 1, 1], [1, 1, 1])
    b = make([[0.3, 0.7], [0.1, 0.9], [0.0, 0.0]], [0, 1, 1], [1, 1, 0])
    c = make([[0.0, 1.0], [0.6, 0.4], [0.4, 0.6]], [0, 1, 1], [1, 1, 1])
    found = fuse([a, b, c])
    # What one could not read is left out of all.
    chex.assert_trees_all_close(
        found.posteriors, np.float32([[0.4, 0.6], [0.4, 0.6], [0, 0]]), atol=1e-6
    )
    np.testing.assert_array_equal(found.weights, [1, 1, 0])
    np.testing.assert_array_equal(found.skipped, [2])
    np.testing.assert_array_equal(found.labels, [0, 1, 1])
    assert found.posteriors.dtype == np.float32


def test_fusing_one_changes_nothing() -> None:
    alone = make([[0.9, 0.1], [0.3, 0.7]], [0, 1], [1, 1])
    np.testing.assert_array_equal(fuse([alone]).posteriors, alone.posteriors)


def test_what_cannot_be_fused() -> None:
    a = make([[0.9, 0.1], [0.5, 0.5]], [0, 1], [1, 1])
    with pytest.raises(ValueError, match="at least one"):
        fuse([])
    with pytest.raises(ValueError, match=r"\[2, 2\] and \[1, 2\]"):
        fuse([a, make([[0.9, 0.1]], [0], [1])])
    with pytest.raises(ValueError, match="other labels"):
        fuse([a, make([[0.9, 0.1], [0.5, 0.5]], [1, 1], [1, 1])])

"""Errors and intervals against counting by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.evaluation.predictions import (
    Predictions,
    confusion_matrix,
    per_class,
    predicted_classes,
    ranks,
    top_k_error,
    wilson,
)
from vgg_jax.training.objectives import classification_sums


def make(
    posteriors: np.ndarray | list, labels: list[int], weights: list[float] | None = None
) -> Predictions:
    return Predictions(
        posteriors=np.array(posteriors, np.float32),
        labels=np.array(labels, np.int32),
        weights=np.array(weights or [1.0] * len(labels), np.float32),
    )


@pytest.fixture
def random() -> Predictions:
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.ones(9), size=200).round(2)  # rounding makes ties
    return make(
        found, rng.integers(0, 9, 200).tolist(), rng.integers(0, 2, 200).tolist()
    )


# Published examples and the closed form for none: z^2 / (n + z^2).
@pytest.mark.parametrize(
    ("errors", "count", "low", "high"),
    [
        (10, 100, 0.0552291, 0.1743657),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (0, 20, 0.0, 0.1611),
    ],
)
def test_wilson_interval(errors: int, count: int, low: float, high: float) -> None:
    found = wilson(errors, count)
    assert found.value == errors / count and found.count == count
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)
    mirrored = wilson(count - errors, count)
    assert mirrored.low == pytest.approx(1 - found.high)
    assert found.half_width == pytest.approx((found.high - found.low) / 2)


@pytest.mark.parametrize(
    ("errors", "count", "message"),
    [
        (0, 0, "no image was evaluated"),
        (3, 2, "errors <= count"),
        (-1, 2, "errors <= count"),
    ],
)
def test_wilson_needs_images(errors: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson(errors, count)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_by_counting(random: Predictions, k: int) -> None:
    errors = count = 0
    for p, label, weight in zip(
        random.posteriors, random.labels, random.weights, strict=True
    ):
        if weight:
            count += 1
            errors += sum(q >= p[label] for i, q in enumerate(p) if i != label) >= k
    found = top_k_error(random, k)
    assert (found.value, found.count) == (errors / count, count)
    assert 0 < errors < count < 200


def test_agrees_with_the_errors_of_training(random: Predictions) -> None:
    sums = classification_sums(
        jnp.asarray(random.posteriors), random.labels, jnp.asarray(random.weights)
    )
    for k, name in ((1, "top1_error"), (5, "top5_error")):
        found = top_k_error(random, k)
        assert found.value * found.count == pytest.approx(float(sums[name]))


def test_ties_count_against_the_network() -> None:
    tied = make([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], [0, 1])
    np.testing.assert_array_equal(ranks(tied), [2, 2])
    assert top_k_error(tied, 1).value == 1
    # So does the class that is said to be predicted.
    np.testing.assert_array_equal(predicted_classes(tied), [1, 0])
    nobody = make([[np.nan] * 6, [0.2, np.nan, 0, 0, 0, 0]], [3, 0])
    np.testing.assert_array_equal(ranks(nobody), [6, 2])


def test_top_5_of_five_classes_or_fewer_is_never_wrong() -> None:
    for classes in (2, 5):
        flat = make(np.full((3, classes), 1 / classes), [0, 1, 0])
        assert top_k_error(flat, 5).value == 0
        assert top_k_error(flat, 1).value == 1
    assert top_k_error(make(np.full((3, 6), 1 / 6), [0, 1, 0]), 5).value == 1


def test_confusion_matrix_and_classes() -> None:
    found = make(
        [
            [0.8, 0.1, 0.1, 0],
            [0.1, 0.8, 0.1, 0],
            [0.1, 0.2, 0.7, 0],
            [0.1, 0.7, 0.2, 0],
            [0.1, 0.1, 0.8, 0],
            [0.9, 0.0, 0.1, 0],
        ],
        [0, 0, 0, 0, 2, 1],
        [1, 1, 1, 1, 1, 0],
    )
    matrix = confusion_matrix(found)
    np.testing.assert_array_equal(
        matrix, [[1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    )
    cat, dog, cow, _ = per_class(found, ("cat", "dog", "cow", "hen"))
    assert (cat.name, cat.images, cat.top1_error) == ("cat", 4, 0.75)
    assert cat.mistaken_for == "dog"
    assert (dog.images, dog.top1_error, dog.mistaken_for) == (0, None, None)
    assert (cow.images, cow.top1_error, cow.mistaken_for) == (1, 0.0, None)


def test_confusion_matrix_agrees_with_top_1(random: Predictions) -> None:
    matrix = confusion_matrix(random)
    found = top_k_error(random, 1)
    assert matrix.sum() == found.count
    assert 1 - np.trace(matrix) / matrix.sum() == pytest.approx(found.value)

"""Posteriors of images, their mean over scales and networks, and their errors.

An example's rank is the number of classes whose posterior is at least its own class's:
ties count against the network. With fewer than six classes top-5 error is 0 by
definition.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Row i is example i of the source.

    Args:
        posteriors: float32 [N, num_classes]; a row of zeros where the weight is 0.
        labels: int32 [N].
        weights: float32 [N]; 0 for an image that could not be decoded, else 1.
    """

    posteriors: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def skipped(self) -> np.ndarray:
        """The numbers of the images that were left out, [skipped]."""
        return np.flatnonzero(self.weights == 0)


def fuse(predictions: Sequence[Predictions]) -> Predictions:
    """The mean of soft-max posteriors (section 3.2: over scales and over networks).

    An image that one of them left out is left out.

    Raises:
        ValueError: nothing to fuse, or predictions of different images or classes.
    """
    if not predictions:
        raise ValueError("expected at least one Predictions, got none")
    first = predictions[0]
    if len({p.posteriors.shape for p in predictions}) > 1:
        shapes = " and ".join(str(list(p.posteriors.shape)) for p in predictions)
        raise ValueError(
            f"expected posteriors of the same images and classes, got {shapes}"
        )
    if any(not np.array_equal(first.labels, p.labels) for p in predictions[1:]):
        raise ValueError(
            "expected predictions of the same images, got other labels; evaluate every "
            "network on the same data"
        )
    weights = np.min([p.weights for p in predictions], axis=0)
    total = np.zeros(first.posteriors.shape, np.float64)
    for p in predictions:
        total += p.posteriors
    mean = (total / len(predictions)).astype(np.float32)
    return Predictions(
        posteriors=np.where(weights[:, None] > 0, mean, np.float32(0)),
        labels=first.labels,
        weights=weights,
    )


@dataclasses.dataclass(frozen=True)
class Rate:
    """A fraction in [0, 1] of `count` images with its 95% interval."""

    value: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the interval, which is not quite symmetric around `value`."""
        return (self.high - self.low) / 2


def wilson(errors: int, count: int) -> Rate:
    """The fraction `errors / count` and its Wilson score interval at 95%.

    Raises:
        ValueError: no images, or more errors than images.
    """
    if count == 0:
        raise ValueError("no image was evaluated: none of them could be decoded")
    if not 0 <= errors <= count:
        raise ValueError(f"expected 0 <= errors <= count, got {errors} of {count}")
    interval = binomtest(errors, count).proportion_ci(0.95, method="wilson")
    return Rate(errors / count, interval.low, interval.high, count)


def ranks(predictions: Predictions) -> np.ndarray:
    """Each evaluated example's rank, 1 when its class scores above all others: int [n].

    A posterior that is not a number ranks above every other. Examples of weight 0 are
    left out.
    """
    posteriors, labels = _evaluated(predictions)
    own = np.take_along_axis(posteriors, labels[:, None], axis=1)
    return np.sum(~(posteriors < own), axis=1)


def top_k_error(predictions: Predictions, k: int) -> Rate:
    """The fraction of images whose class is not among the k highest posteriors.

    Raises:
        ValueError: no image was evaluated.
    """
    rank = ranks(predictions)
    return wilson(int(np.sum(rank > k)), len(rank))


def predicted_classes(predictions: Predictions) -> np.ndarray:
    """The class with the highest posterior, of each evaluated example: int [n].

    A tie with its own class is an error, as it is in `top_k_error`; other ties go to
    the lower number.
    """
    posteriors, labels = _evaluated(predictions)
    others = posteriors.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return np.where(ranks(predictions) == 1, labels, others.argmax(axis=1))


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Images by true class (rows) and predicted class (columns): int [C, C]."""
    _, labels = _evaluated(predictions)
    classes = predictions.posteriors.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted_classes(predictions)), 1)
    return matrix


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """One class: its top-1 error (None without images), and what it is mistaken for."""

    name: str
    images: int
    top1_error: float | None
    mistaken_for: str | None  # the most frequent wrong class


def per_class(
    predictions: Predictions, class_names: Sequence[str]
) -> tuple[ClassResult, ...]:
    """A row a class, in the order of the labels."""
    return class_results(confusion_matrix(predictions), class_names)


def class_results(
    matrix: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassResult, ...]:
    """`per_class` from a confusion matrix, int [C, C]."""
    rows = []
    for i, counts in enumerate(matrix):
        images = int(counts.sum())
        wrong = counts.copy()
        wrong[i] = 0
        rows.append(
            ClassResult(
                name=class_names[i],
                images=images,
                top1_error=int(wrong.sum()) / images if images else None,
                mistaken_for=class_names[wrong.argmax()] if wrong.any() else None,
            )
        )
    return tuple(rows)


def _evaluated(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    kept = predictions.weights > 0
    return predictions.posteriors[kept], predictions.labels[kept]

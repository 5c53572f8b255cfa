"""Averages posteriors over scales and networks, and counts their errors.

An example's rank is the number of classes whose posterior is at least its own class's:
ties count against the network. With fewer than six classes top-5 error is 0 by
definition.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vgg_jax.data.base import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """The posteriors and labels of a source's examples; row i is example i.

    Args:
        posteriors: float32 [N, num_classes]; a row of zeros where the weight is 0.
        labels: int32 [N], the true classes.
        weights: float32 [N]; 0 for an image that could not be decoded, else 1.
    """

    posteriors: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def skipped(self) -> np.ndarray:
        """The numbers of the images that were left out, [skipped]."""
        return np.flatnonzero(self.weights == 0)


class NotFiniteError(ValueError):
    """A network gave an image scores that are not finite numbers."""


def validate_finite(predictions: Predictions, source: Source, work: str) -> None:
    """Checks that the posteriors of every evaluated image are finite.

    Args:
        predictions: the posteriors.
        source: the images, for the name of the first that is refused.
        work: what was computed, for the message.

    Raises:
        NotFiniteError: they are not.
    """
    is_finite = np.isfinite(predictions.posteriors).all(axis=1)
    refused = np.flatnonzero(~is_finite & (predictions.weights > 0))
    if refused.size:
        raise NotFiniteError(
            f"{work}: the scores of {source[int(refused[0])]['name']} are not finite "
            f"numbers, nor are those of {refused.size - 1:,} other images; its weights "
            "are damaged or its training diverged: evaluate another checkpoint"
        )


def fuse(predictions: Sequence[Predictions]) -> Predictions:
    """Averages the soft-max posteriors of several scales or networks (section 3.2).

    An image that one of the predictions leaves out is left out.

    Raises:
        ValueError: there is nothing to fuse, or the predictions are of different images
            or classes.
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
    """Returns the fraction `errors / count` and its Wilson score interval at 95%.

    Raises:
        ValueError: there are no images, or more errors than images.
    """
    if count == 0:
        raise ValueError("no image was evaluated: none of them could be decoded")
    if not 0 <= errors <= count:
        raise ValueError(f"expected 0 <= errors <= count, got {errors} of {count}")
    # Here, for scipy.stats takes seconds to load.
    from scipy.stats import binomtest

    interval = binomtest(errors, count).proportion_ci(0.95, method="wilson")
    return Rate(errors / count, interval.low, interval.high, count)


def ranks(predictions: Predictions) -> np.ndarray:
    """Returns each evaluated example's rank, int [n].

    It is 1 when the example's class scores above all others. A posterior that is not a
    number ranks above every other. Examples of weight 0 are left out.
    """
    posteriors, labels = _evaluated(predictions)
    own = np.take_along_axis(posteriors, labels[:, None], axis=1)
    return np.sum(~(posteriors < own), axis=1)


def top_k_error(predictions: Predictions, k: int) -> Rate:
    """Returns the fraction of images whose class is not among the k likeliest.

    Raises:
        ValueError: no image was evaluated.
    """
    rank = ranks(predictions)
    return wilson(int(np.sum(rank > k)), len(rank))


def predicted_classes(predictions: Predictions) -> np.ndarray:
    """Returns each evaluated example's class with the highest posterior: int [n].

    A tie with its own class is an error, as it is in `top_k_error`; other ties go to
    the lower number.
    """
    posteriors, labels = _evaluated(predictions)
    others = posteriors.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return np.where(ranks(predictions) == 1, labels, others.argmax(axis=1))


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Counts images by true class (rows) and predicted class (columns): int [C, C]."""
    _, labels = _evaluated(predictions)
    classes = predictions.posteriors.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted_classes(predictions)), 1)
    return matrix


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """The errors of one class.

    Args:
        name: the name of the class.
        images: how many of its images were evaluated.
        top1_error: the fraction of them that is given another class; None without any.
        mistaken_for: the most frequent wrong class; None where none is wrong.
    """

    name: str
    images: int
    top1_error: float | None
    mistaken_for: str | None


def per_class(
    predictions: Predictions, class_names: Sequence[str]
) -> tuple[ClassResult, ...]:
    """Returns the errors of each class, in the order of the labels."""
    return class_results(confusion_matrix(predictions), class_names)


def class_results(
    matrix: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassResult, ...]:
    """Returns the errors of each class from a confusion matrix, int [C, C]."""
    results = []
    for i, counts in enumerate(matrix):
        images = int(counts.sum())
        wrong = counts.copy()
        wrong[i] = 0
        results.append(
            ClassResult(
                name=class_names[i],
                images=images,
                top1_error=int(wrong.sum()) / images if images else None,
                mistaken_for=class_names[wrong.argmax()] if wrong.any() else None,
            )
        )
    return tuple(results)


def _evaluated(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns the posteriors and the labels of the examples that were not left out."""
    is_evaluated = predictions.weights > 0
    return predictions.posteriors[is_evaluated], predictions.labels[is_evaluated]

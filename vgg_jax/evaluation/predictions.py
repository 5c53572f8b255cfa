"""Posteriors of images, and their mean over scales, protocols and networks."""

import dataclasses
from collections.abc import Sequence

import numpy as np


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

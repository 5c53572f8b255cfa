"""The geometry of boxes given by center, width and height (appendix A).

A box is the last axis of an array, [..., 4]: (x, y, width, height) with x to the right
and y down. In pixels x and y are distances from the image's upper left corner, so that
the first pixel lies from 0 to 1. Relative to a window, which is a box itself, they are
distances from the window's center in units of its width and height: (0, 0, 1, 1) is the
window, mirroring changes the sign of x, and rescaling changes nothing.

Everything works on NumPy and on JAX arrays.
"""

from typing import Any

import jax
import numpy as np

Boxes = np.ndarray | jax.Array

# A box is right when its intersection over union with the true one is above this.
RIGHT_IOU = 0.5


def window(top: float, left: float, height: float, width: float) -> np.ndarray:
    """Makes the box [4] of an image or a crop from its corner and sides, in pixels."""
    return np.array([left + width / 2, top + height / 2, width, height])


def relative_to(window: Boxes, boxes: Boxes) -> Any:
    """Returns boxes in the coordinates of a window that they are seen from.

    Both are [..., 4], given in the same coordinates.
    """
    xp = _namespace(window, boxes)
    sides = window[..., 2:]
    centers = (boxes[..., :2] - window[..., :2]) / sides
    return xp.concatenate([centers, boxes[..., 2:] / sides], axis=-1)


def seen_from(window: Boxes, boxes: Boxes) -> Any:
    """Returns boxes, given relative to a window, in the window's own coordinates.

    Both are [..., 4]. It undoes `relative_to`.
    """
    xp = _namespace(window, boxes)
    sides = window[..., 2:]
    centers = window[..., :2] + boxes[..., :2] * sides
    return xp.concatenate([centers, boxes[..., 2:] * sides], axis=-1)


def mirror(boxes: Boxes) -> Any:
    """Flips boxes [..., 4] left to right, relative to a window that is flipped too."""
    return boxes * np.array([-1, 1, 1, 1], boxes.dtype)


def intersection(a: Boxes, b: Boxes) -> Any:
    """Returns the area that two boxes share, [..., 4] x [..., 4] -> [...].

    A side below zero counts as zero.
    """
    xp = _namespace(a, b)
    half_a, half_b = a[..., 2:].clip(0) / 2, b[..., 2:].clip(0) / 2
    begin = xp.maximum(a[..., :2] - half_a, b[..., :2] - half_b)
    end = xp.minimum(a[..., :2] + half_a, b[..., :2] + half_b)
    return (end - begin).clip(0).prod(-1)


def area(boxes: Boxes) -> Any:
    """Computes areas, [..., 4] -> [...]; a side below zero counts as zero."""
    return boxes[..., 2:].clip(0).prod(-1)


def iou(a: Boxes, b: Boxes) -> Any:
    """Returns the intersection over union, [..., 4] x [..., 4] -> [...] in [0, 1].

    It is 0 where both are empty; a box that is not numbers has no overlap with any.
    """
    xp = _namespace(a, b)
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return xp.where(shared > 0, shared / xp.where(union > 0, union, 1), 0)


def class_boxes(outputs: jax.Array, classes: jax.Array) -> jax.Array:
    """Picks the boxes that a network predicts for some classes.

    outputs [..., 4 * num_classes], classes int [..., k] -> [..., k, 4]. Outputs of
    single-class regression, [..., 4], are the box of every class.
    """
    by_class = outputs.reshape(*outputs.shape[:-1], -1, 4)
    if by_class.shape[-2] == 1:
        classes = jax.numpy.zeros_like(classes)
    return jax.numpy.take_along_axis(by_class, classes[..., None], axis=-2)


def _namespace(*arrays: Boxes) -> Any:
    """Returns NumPy, or jax.numpy where one of the arrays is of JAX."""
    return jax.numpy if any(isinstance(a, jax.Array) for a in arrays) else np

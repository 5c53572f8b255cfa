"""Geometry of boxes against cases computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax import boxes


def test_a_window_is_the_box_of_its_corner_and_sides():
    # Rows 10 to 30, columns 40 to 100.
    np.testing.assert_array_equal(boxes.window(10, 40, 20, 60), [70, 20, 60, 20])


def test_relative_boxes_and_back():
    crop = boxes.window(top=10, left=40, height=20, width=60)
    found = boxes.relative_to(crop, np.array([[70.0, 20, 60, 20], [40, 30, 30, 5]]))
    np.testing.assert_allclose(found, [[0, 0, 1, 1], [-0.5, 0.5, 0.5, 0.25]])
    back = boxes.seen_from(crop, found)
    np.testing.assert_allclose(back, [[70, 20, 60, 20], [40, 30, 30, 5]])


def test_mirrored_boxes_keep_all_but_the_side_they_lie_on():
    np.testing.assert_array_equal(
        boxes.mirror(np.array([0.25, 0.1, 0.5, 0.3])), [-0.25, 0.1, 0.5, 0.3]
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((5, 5, 10, 10), (5, 5, 10, 10), 1.0),
        ((5, 5, 10, 10), (10, 5, 10, 10), 50 / 150),  # half of each
        ((5, 5, 10, 10), (5, 5, 4, 10), 0.4),  # one inside the other
        ((5, 5, 10, 10), (10, 10, 10, 10), 25 / 175),  # a corner
        ((5, 5, 10, 10), (15, 5, 10, 10), 0.0),  # they touch
        ((5, 5, 10, 10), (50, 5, 10, 10), 0.0),
        ((5, 5, 10, 10), (15, 15, 2, 2), 0.0),  # apart in both directions
        ((5, 5, -10, -10), (5, 5, 10, 10), 0.0),  # what a regression may say
        ((5, 5, 0, 0), (5, 5, 0, 0), 0.0),
        ((np.nan, 5, 10, 10), (5, 5, 10, 10), 0.0),
    ],
)
def test_intersection_over_union(a, b, expected):
    a, b = np.array(a, np.float32), np.array(b, np.float32)
    for first, second in ((a, b), (b, a)):
        assert boxes.iou(first, second) == pytest.approx(expected)
        traced = jax.jit(boxes.iou)(first, second)
        assert float(traced) == pytest.approx(expected)


def test_pairs_broadcast():
    rows = np.array([[5.0, 5, 10, 10], [10, 5, 10, 10]])
    found = boxes.iou(rows[:, None], rows[None])
    np.testing.assert_allclose(found, [[1, 1 / 3], [1 / 3, 1]])


def test_numpy_stays_numpy_and_jax_stays_jax():
    rows = np.ones((2, 4))
    assert isinstance(boxes.relative_to(rows, rows), np.ndarray)
    assert isinstance(boxes.seen_from(rows, jnp.asarray(rows)), jax.Array)

"""Merging against cases computed by hand."""

import numpy as np
import pytest

from vgg_jax.localization.localize import match_score, merge_boxes


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 0),
        # A quarter of a side to the right: shares 3/5 of the union.
        ((0, 0, 4, 4), (1, 0, 4, 4), 0.25 + 0.4),
        # Half a width right and half a height down, of sides 2 and 6 and their mean 4:
        # a distance of sqrt(2) / 2; the first, 4 of 36, lies in the second.
        ((0, 0, 2, 2), (2, 2, 6, 6), np.sqrt(2) / 2 + 1 - 4 / 36),
        # Concentric: no distance, a quarter shared.
        ((0, 0, 2, 2), (0, 0, 4, 4), 0.75),
        # Apart: a distance of two sides, nothing shared.
        ((0, 0, 4, 4), (0, 8, 4, 4), 3),
    ],
)
def test_match_score(a, b, expected):
    a, b = np.array(a, float), np.array(b, float)
    assert match_score(a, b) == pytest.approx(expected)
    assert match_score(b, a) == pytest.approx(expected)


def test_match_score_of_boxes_without_area_is_a_number():
    empty = np.array([0.0, 0, -1, 0])
    assert match_score(empty, empty) == 1


def test_the_two_nearest_are_merged_first_and_ratings_are_summed():
    found = np.array([[0.0, 0, 4, 4], [1, 0, 4, 4], [1.5, 0, 4, 4], [9, 9, 2, 2]])
    ratings = np.array([0.1, 0.2, 0.3, 0.5])
    # 1 and 2 are an eighth of a side apart, and merge into (1.25, 0). From 0 that is
    # 1.25 / 4 of a side, sharing 2.75 / 5.25: a score of 0.789.
    merged, rating = merge_boxes(found, ratings, below=0.78)
    np.testing.assert_allclose(merged, [[1.25, 0, 4, 4], [9, 9, 2, 2], [0, 0, 4, 4]])
    np.testing.assert_allclose(rating, [0.5, 0.5, 0.1])
    # All three: the mean of three boxes, not of (1.25, 0) and (0, 0).
    merged, rating = merge_boxes(found, ratings, below=0.8)
    np.testing.assert_allclose(merged, [[2.5 / 3, 0, 4, 4], [9, 9, 2, 2]])
    np.testing.assert_allclose(rating, [0.6, 0.5])


def test_the_best_rated_comes_first():
    found = np.array([[0.0, 0, 1, 1], [5, 5, 1, 1], [9, 0, 1, 1]])
    merged, rating = merge_boxes(found, np.array([0.2, 0.1, 0.9]), below=0.5)
    np.testing.assert_array_equal(merged, found[[2, 0, 1]])
    np.testing.assert_allclose(rating, [0.9, 0.2, 0.1])


def test_one_box_and_copies_of_it():
    box = np.array([[1.0, 2, 3, 4]])
    merged, rating = merge_boxes(box, np.array([0.4]), below=0.5)
    np.testing.assert_array_equal(merged, box)
    merged, rating = merge_boxes(box.repeat(5, 0), np.full(5, 0.1), below=0.5)
    np.testing.assert_allclose(merged, box)
    assert rating == pytest.approx([0.5])


def test_numbers_that_are_not_are_left_alone():
    found = np.array([[np.nan] * 4, [0.0, 0, 1, 1], [0, 0, 1, 1]])
    merged, rating = merge_boxes(found, np.array([0.1, 0.2, 0.3]), below=0.5)
    assert len(merged) == 2 and rating[0] == pytest.approx(0.5)

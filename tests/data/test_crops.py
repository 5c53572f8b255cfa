"""Where crops are cut."""

import numpy as np
import pytest

from vgg_jax.data import transforms


def test_the_grid_of_section_3_2() -> None:
    # 256x341 and crops of 224: 32 pixels down, 117 right.
    corners = transforms.grid_5x5(32, 117)
    assert len(corners) == 25
    assert corners[::5] == [(0, 0), (8, 0), (16, 0), (24, 0), (32, 0)]
    # 29.25, 58.5 and 87.75 are rounded down.
    assert corners[:5] == [(0, 0), (0, 29), (0, 58), (0, 87), (0, 117)]
    # Its middle is the center crop, whatever the room.
    for room in range(9):
        assert transforms.grid_5x5(room, 3)[12] == transforms.center(room, 3)[0]


def test_corners_and_center() -> None:
    corners = transforms.corners_and_center(7, 12)
    assert corners == [(0, 0), (0, 12), (7, 0), (7, 12), (3, 6)]


@pytest.mark.parametrize(
    "layout", [transforms.center, transforms.corners_and_center, transforms.grid_5x5]
)
def test_crops_that_cannot_move_coincide(layout: transforms.CropLayout) -> None:
    assert set(layout(0, 0)) == {(0, 0)}
    assert len(layout(0, 0)) == len(layout(9, 5))


def test_cut() -> None:
    image = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    crops = transforms.cut(image, 5, transforms.corners_and_center)
    assert crops.shape == (5, 5, 5, 3)
    np.testing.assert_array_equal(crops[1], image[:5, 4:])
    np.testing.assert_array_equal(crops[4], image[1:6, 2:7])
    with pytest.raises(ValueError, match=r"8x8 crop from an image of 7x9"):
        transforms.cut(image, 8, transforms.center)

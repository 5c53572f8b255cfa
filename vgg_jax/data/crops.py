"""Where crops are cut from a larger image (arXiv:1409.1556).

A rule takes the room, how many pixels a crop can move down and right, and gives the
upper left corner (top, left) of each crop. The number of crops does not depend on the
room: where there is too little of it some coincide.
"""

import functools
from collections.abc import Callable, Sequence

Rule = Callable[[int, int], Sequence[tuple[int, int]]]


def at(down: float, right: float) -> Rule:
    """One crop at fractions in [0, 1) of the places where it fits.

    With two uniform numbers it is the random crop of section 3.1.
    """
    return lambda rows, columns: [(int(down * (rows + 1)), int(right * (columns + 1)))]


def center(down: int, right: int) -> list[tuple[int, int]]:
    """The middle, rounded towards the upper left."""
    return [(down // 2, right // 2)]


def corners_and_center(down: int, right: int) -> list[tuple[int, int]]:
    """Five crops, of the ten of Krizhevsky et al. (2012): the others are mirrored."""
    return [(0, 0), (0, right), (down, 0), (down, right), *center(down, right)]


def grid(side: int, down: int, right: int) -> list[tuple[int, int]]:
    """A regular grid of side x side crops, row by row.

    Along each axis the first crop is at 0, the last at the end of the room, crop i at
    `i * room // (side - 1)`: evenly spaced, rounded towards the upper left.
    """
    return [
        (i * down // (side - 1), j * right // (side - 1))
        for i in range(side)
        for j in range(side)
    ]


# 25 of the 50 crops a scale of section 3.2: the others are mirrored.
grid_5x5: Rule = functools.partial(grid, 5)

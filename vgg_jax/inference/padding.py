"""The few shapes that images of any size are padded to, so that few programs compile.

A rescaled image has short side Q, so one list of ratios, width over height, gives the
shapes of every scale. `buckets.py` says what they cost.
"""

import math
from collections.abc import Iterable

Shape = tuple[int, int]  # height and width, in pixels


def padded_shapes(ratios: Iterable[float], scale: int) -> tuple[Shape, ...]:
    """One for each ratio at short side Q, smallest area first.

    Raises:
        ValueError: a ratio that is not a number above zero.
    """
    shapes: set[Shape] = set()
    for ratio in ratios:
        if not 0 < ratio < math.inf:
            raise ValueError(
                f"expected ratios of width to height above 0, got {ratio}; change "
                "bucket_ratios"
            )
        long = math.ceil(scale * max(ratio, 1 / ratio))
        shapes.add((scale, long) if ratio >= 1 else (long, scale))
    return tuple(sorted(shapes, key=math.prod))


def smallest_fitting(shapes: Iterable[Shape], height: int, width: int) -> Shape | None:
    """The first of `shapes`, smallest first, that holds an image; None if none does."""
    return next((s for s in shapes if s[0] >= height and s[1] >= width), None)

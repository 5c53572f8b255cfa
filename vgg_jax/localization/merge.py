"""Greedy merging of boxes as OverFeat has it (arXiv:1312.6229, section 4.4).

Its text says that two boxes match by "the sum of the distance between centers of the
two bounding boxes and the intersection area of the boxes", the lowest sum first; by the
letter, boxes that share more would match less. Here the sum is of the distance and of
what the boxes do not share.
"""

import numpy as np

from vgg_jax import boxes

TINY = 1e-6  # sides are at least this when distances are divided by them


def match_score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How badly two boxes match: [..., 4] x [..., 4] -> [...]; 0 for the same box.

    The distance of their centers, where a step of the two boxes' mean width or height
    counts 1, plus 1 minus their intersection over union. A box that is not numbers
    matches none: infinity.
    """
    sides = np.maximum((a[..., 2:] + b[..., 2:]) / 2, TINY)
    distance = np.linalg.norm((a[..., :2] - b[..., :2]) / sides, axis=-1)
    return np.nan_to_num(distance + 1 - boxes.iou(a, b), nan=np.inf)


def merge(
    boxes_of_cells: np.ndarray, ratings: np.ndarray, below: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the two boxes that match best, until none match `below`.

    [n, 4] and [n] -> [m, 4] and [m], best rating first. A merged box is the mean of the
    coordinates of all boxes in it, and its rating their sum: OverFeat's "cumulatively
    adding the detection class outputs".
    """
    merged = boxes_of_cells.astype(np.float64)
    ratings = ratings.astype(np.float64)
    members = np.ones(len(merged))
    scores = match_score(merged[:, None], merged[None])
    np.fill_diagonal(scores, np.inf)
    while len(merged):
        i, j = np.unravel_index(scores.argmin(), scores.shape)
        if not scores[i, j] < below:
            break
        both = members[i] + members[j]
        merged[i] = (members[i] * merged[i] + members[j] * merged[j]) / both
        ratings[i] += ratings[j]
        members[i], members[j] = both, 0
        scores[i] = scores[:, i] = np.where(
            members > 0, match_score(merged[i], merged), np.inf
        )
        scores[i, i] = scores[j] = scores[:, j] = np.inf
    order = np.argsort(-ratings, kind="stable")
    order = order[members[order] > 0]
    return merged[order], ratings[order]

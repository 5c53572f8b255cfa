"""Runs the testing protocols of appendix A of arXiv:1409.1556, and counts errors.

Everything is in units of the image, so that boxes of several scales can be merged. They
are merged greedily as in OverFeat (arXiv:1312.6229, section 4.4), whose text says that
two boxes match by "the sum of the distance between centers of the two bounding boxes
and the intersection area of the boxes", the lowest sum first; by the letter, boxes that
share more would match less. Here the sum is of the distance and of what the boxes do
not share.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vgg_jax import boxes
from vgg_jax.boxes import RIGHT_IOU
from vgg_jax.config import Config
from vgg_jax.console import progress_bar
from vgg_jax.data import transforms
from vgg_jax.data.sources import Source
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.evaluation.predictions import Rate, wilson
from vgg_jax.inference.forward import Head, Network
from vgg_jax.inference.passes import View, example_rows, over_source, place_rows
from vgg_jax.localization.cell_boxes import CellBoxes, CellRatings, CenterBoxes
from vgg_jax.models import ConvNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Localizations:
    """The boxes that networks predict, k for each example; row i is example i.

    Args:
        boxes: [N, k, 4], relative to the image.
        classes: int [N, k], the class that each box is of.
        targets: [N, 4], the true boxes, relative to the image.
        labels: int [N], the true classes.
        weights: [N]; 0 for an image that could not be decoded, else 1.
    """

    boxes: np.ndarray
    classes: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def localization_error(localizations: Localizations) -> Rate:
    """Returns the fraction of images without a box of the right class and place.

    This is ILSVRC's localization error. The right place is an intersection over union
    above 0.5 with the true box.

    Raises:
        ValueError: no image was evaluated.
    """
    is_right = right_boxes(localizations)[localizations.weights > 0]
    return wilson(int(np.sum(~is_right.any(axis=1))), len(is_right))


def right_boxes(localizations: Localizations) -> np.ndarray:
    """Says which boxes have the right class and the right place: bool [N, k]."""
    overlap = boxes.iou(localizations.boxes, localizations.targets[:, None])
    is_own_class = localizations.classes == localizations.labels[:, None]
    return (overlap > RIGHT_IOU) & is_own_class


def select_boxes(localizations: Localizations, columns: slice) -> Localizations:
    """Keeps some of each image's k boxes, those in the slice `columns`."""
    return dataclasses.replace(
        localizations,
        boxes=localizations.boxes[:, columns],
        classes=localizations.classes[:, columns],
    )


def mean_box_baseline(localizations: Localizations) -> Localizations:
    """Puts the mean of all true boxes in the place of every predicted box."""
    mean = localizations.targets[localizations.weights > 0].mean(axis=0)
    return dataclasses.replace(
        localizations, boxes=np.broadcast_to(mean, localizations.boxes.shape)
    )


def center_crop_boxes(
    model: ConvNet,
    source: Source,
    config: Config,
    *,
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Localizations:
    """Predicts the box of the true class from the center crop: the first protocol.

    Boxes are relative to the crop. The protocol compares networks without errors of
    classification.

    Args:
        model: a network that predicts boxes.
        source: images with boxes.
        config: says how images are cropped and normalized, and their scale,
            `evaluation.center_scale`.
        mesh: the devices that each batch is spread over, see `over_source`.
        progress: the name of the work in a progress bar on stderr; None for none.
    """
    view = View(config.evaluation.center_scale, transforms.center)
    with progress_bar(progress, len(source)) as bar:
        rows = over_source(
            _network(model, config),
            CenterBoxes(),
            source,
            config,
            view,
            with_boxes=True,
            mesh=mesh,
            bar=bar,
        )
    return Localizations(
        boxes=rows["output"].astype(np.float64),
        classes=rows["label"][:, None],
        targets=rows["box"].astype(np.float64),
        labels=rows["label"],
        weights=rows["weight"],
    )


def dense_boxes(
    localizers: Sequence[ConvNet],
    classifier: ConvNet,
    source: Source,
    config: Config,
    classes: np.ndarray,
    *,
    scales: Sequence[int],
    merge_below: float,
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Localizations:
    """Predicts boxes from whole images at several scales: the second protocol.

    The boxes of all cells, scales and localization networks are merged, class by class.
    Of the merged ones the one with the best rating stays: the sum of the classifier's
    posteriors in the cells that its boxes come from.

    Args:
        localizers: networks that predict boxes.
        classifier: the network that rates the boxes; its map has as many cells.
        source: images with boxes.
        config: says how images are normalized, and the batch size.
        classes: int [N, k], the classes of each image to predict a box of.
        scales: short sides Q, in pixels.
        merge_below: the score below which two boxes are merged, see `merge_boxes`.
        mesh: the devices that each batch is spread over, see `over_source`.
        progress: the name of the work in a progress bar on stderr; None for none.

    Raises:
        ValueError: the maps of the networks differ, or there is no scale or network.
    """
    if not scales or not localizers:
        raise ValueError("expected at least one scale and one localization network")
    run_pass = functools.partial(
        _rows_by_example,
        source=source,
        config=config,
        extras={"classes": classes},
        mesh=mesh,
    )
    candidates: dict[int, list[np.ndarray]] = {}
    examples: dict[int, dict[str, np.ndarray]] = {}
    passes = len(scales) * (len(localizers) + 1)
    with progress_bar(progress, len(source) * passes) as bar:
        for scale in scales:
            ratings = {
                number: cells
                for number, _, cells in run_pass(
                    classifier, CellRatings(), view=View(scale), bar=bar
                )
            }
            head = CellBoxes(crop=config.data.crop)
            for localizer in localizers:
                for number, description, cells in run_pass(
                    localizer, head, view=View(scale), bar=bar
                ):
                    rated = _rate_cells(cells, ratings[number])
                    candidates.setdefault(number, []).append(rated)
                    examples[number] = description
    for number, example in examples.items():
        example["boxes"] = np.zeros((1, classes.shape[1], 4))
        if example["weight"][0]:
            cells = np.concatenate(candidates[number])
            for k in range(classes.shape[1]):
                merged, _ = merge_boxes(cells[:, k, :4], cells[:, k, 4], merge_below)
                example["boxes"][0, k] = merged[0]
    placed = place_rows(list(examples.values()), len(source))
    return Localizations(
        boxes=placed["boxes"],
        classes=classes,
        targets=placed["box"].astype(np.float64),
        labels=placed["label"],
        weights=placed["weight"],
    )


def _rows_by_example(
    model: ConvNet,
    head: Head,
    *,
    source: Source,
    config: Config,
    view: View,
    **options: Any,
) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]:
    """Yields the number, the description and the output of this host's examples.

    A description has one row of each array.
    """
    network = _network(model, config)
    for rows in example_rows(
        network, head, source, config, view, with_boxes=True, **options
    ):
        for i, number in enumerate(rows.numbers.tolist()):
            described = {"index": rows.numbers, **rows.descriptions}
            row = {name: values[i : i + 1] for name, values in described.items()}
            yield number, row, rows.outputs[i]


def _rate_cells(boxes: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """Joins boxes and their ratings: [h, w, k, 4] and [h, w, k] -> [cells, k, 5].

    Cells that are padding, rated below zero, are left out.
    """
    if boxes.shape[:-1] != ratings.shape:
        raise ValueError(
            "expected networks whose maps have as many cells, got "
            f"{list(boxes.shape[:2])} of boxes and {list(ratings.shape[:2])} of "
            "classes; train both on the same crop"
        )
    rated = np.concatenate([boxes, ratings[..., None]], axis=-1)
    return rated[ratings[..., 0] >= 0]


def _network(model: ConvNet, config: Config) -> Network:
    """Makes a network of a model, with the normalization of a configuration."""
    return Network.from_model(model, preprocessing_of(config.data))


TINY = 1e-6  # sides are at least this when distances are divided by them


def match_score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Measures how badly two boxes match: [..., 4] x [..., 4] -> [...].

    The score is 0 for the same box. It is the distance of their centers, where a step
    of the two boxes' mean width or height counts 1, plus 1 minus their intersection
    over union. A box that is not numbers matches none: infinity.
    """
    sides = np.maximum((a[..., 2:] + b[..., 2:]) / 2, TINY)
    distance = np.linalg.norm((a[..., :2] - b[..., :2]) / sides, axis=-1)
    return np.nan_to_num(distance + 1 - boxes.iou(a, b), nan=np.inf)


def merge_boxes(
    cell_boxes: np.ndarray, ratings: np.ndarray, below: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the two boxes that match best, again and again, until none match `below`.

    [n, 4] and [n] -> [m, 4] and [m], best rating first. A merged box is the mean of the
    coordinates of all boxes in it, and its rating their sum: OverFeat's "cumulatively
    adding the detection class outputs".
    """
    merged = cell_boxes.astype(np.float64)
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

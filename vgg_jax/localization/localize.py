"""The testing protocols of appendix A of arXiv:1409.1556: boxes and their errors.

Everything is in units of the image, so that boxes of several scales can be merged.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vgg_jax import boxes
from vgg_jax.boxes import RIGHT_IOU, class_boxes
from vgg_jax.config import Config
from vgg_jax.console import progress_bar
from vgg_jax.data.pipeline import eval_batches, whole_image_batches
from vgg_jax.data.sources import Source
from vgg_jax.distributed import make_mesh, replicate, shard_batch
from vgg_jax.evaluation.errors import Rate, wilson
from vgg_jax.evaluation.padding import shapes, smallest_fitting
from vgg_jax.localization.cell_boxes import dense_boxes, dense_ratings
from vgg_jax.localization.merge import merge
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Localizations:
    """Row i is example i of the source; k boxes each, relative to the image.

    Args:
        boxes: [N, k, 4].
        classes: int [N, k], what each box is a box of.
        targets: [N, 4], the true boxes.
        labels: int [N].
        weights: [N]; 0 for an image that could not be decoded, else 1.
    """

    boxes: np.ndarray
    classes: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def error(found: Localizations) -> Rate:
    """ILSVRC's localization error: no box has the right class and the right place.

    The right place is an intersection over union above 0.5 with the true box.

    Raises:
        ValueError: no image was evaluated.
    """
    right = right_boxes(found)[found.weights > 0]
    return wilson(int(np.sum(~right.any(axis=1))), len(right))


def right_boxes(found: Localizations) -> np.ndarray:
    """Which boxes have the right class and the right place: bool [N, k]."""
    placed = boxes.iou(found.boxes, found.targets[:, None]) > RIGHT_IOU
    return placed & (found.classes == found.labels[:, None])


def columns(found: Localizations, some: slice) -> Localizations:
    """Some of each image's boxes."""
    return dataclasses.replace(
        found, boxes=found.boxes[:, some], classes=found.classes[:, some]
    )


def baseline(found: Localizations) -> Localizations:
    """The same classes, each with the mean of all true boxes."""
    mean = found.targets[found.weights > 0].mean(axis=0)
    return dataclasses.replace(found, boxes=np.broadcast_to(mean, found.boxes.shape))


def center_crop(
    model: ConvNet,
    source: Source,
    config: Config,
    *,
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Localizations:
    """The first protocol: the box of the true class, from the center crop alone.

    Boxes are relative to the crop. Compares networks without errors of classification.

    Args:
        model: predicts boxes.
        source: images with boxes.
        config: `data`, and the scale `evaluation.center_scale`.
        mesh: the batch is spread over its devices, by default over all.
        progress: the name of the work in a progress line on stderr; None for none.
    """
    mesh = make_mesh() if mesh is None else mesh

    @jax.jit
    def predict(state: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
        outputs = nnx.merge(graphdef, state)(_normalized(images, config))
        return class_boxes(outputs, labels[:, None])

    graphdef, state = nnx.split(model)
    state = replicate(mesh, state)
    rows = _Rows(len(source), 1)
    line = progress_bar(progress, len(source))
    for batch in eval_batches(
        source,
        config.data,
        channels=model.in_channels,
        scale=config.evaluation.center_scale,
        crop=config.data.crop,
        batch_size=_batch_size(config, mesh),
        with_boxes=True,
    ):
        there = shard_batch(mesh, {name: batch[name] for name in ("image", "label")})
        found = predict(state, there["image"], there["label"])
        rows.boxes[rows.put(batch)] = np.asarray(found)[batch["index"] >= 0]
        line.update(int(np.sum(batch["index"] >= 0)))
    line.close()
    return rows.localizations(rows.labels[:, None])


def dense(
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
    """The second protocol: networks on the whole image at several scales.

    The boxes of all cells, scales and localization networks are merged, class by class.
    Of the merged ones the one with the best rating stays: the sum of the classifier's
    posteriors in the cells that its boxes come from.

    Args:
        localizers: predict boxes.
        classifier: rates them; its map has as many cells.
        source: images with boxes.
        config: `data` and the batch size.
        classes: int [N, k], those to predict a box of, of each image.
        scales: short sides Q, in pixels.
        merge_below: see `merge`.
        mesh: the batch is spread over its devices, by default over all.
        progress: the name of the work in a progress line on stderr; None for none.

    Raises:
        ValueError: networks whose maps differ, or no scale.
    """
    if not scales or not localizers:
        raise ValueError("expected at least one scale and one localization network")
    mesh = make_mesh() if mesh is None else mesh
    rows = _Rows(len(source), classes.shape[1])
    candidates: list[list[np.ndarray]] = [[] for _ in range(len(source))]
    line = progress_bar(progress, len(source) * len(scales) * len(localizers))
    for localizer, scale in itertools.product(localizers, scales):
        predict = _dense_step(localizer, classifier, config, mesh)
        buckets = shapes(config.evaluation.bucket_ratios, scale)

        def bucket(height: int, width: int, buckets: Any = buckets) -> tuple[int, int]:
            # An image that is longer than every bucket has one of its own.
            return smallest_fitting(buckets, height, width) or (height, width)

        for batch in whole_image_batches(
            source,
            config.data,
            channels=localizer.in_channels,
            scale=scale,
            bucket=bucket,
            batch_size=_batch_size(config, mesh),
            with_boxes=True,
        ):
            wanted = classes[batch["index"]]  # -1, an empty row, asks for any
            found = np.asarray(predict(batch["image"], batch["size"], wanted))
            index = rows.put(batch)
            for i, cells in zip(index, found[batch["index"] >= 0], strict=True):
                candidates[i].append(cells[cells[:, 0, 4] >= 0])  # without padding
            line.update(len(index))
    line.close()
    for i, cells in enumerate(candidates):
        if rows.weights[i]:
            for k, found in enumerate(np.concatenate(cells).swapaxes(0, 1)):
                merged, _ = merge(found[:, :4], found[:, 4], merge_below)
                rows.boxes[i, k] = merged[0]
    return rows.localizations(classes)


def _dense_step(
    localizer: ConvNet, classifier: ConvNet, config: Config, mesh: Mesh
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array]:
    """(images [N, H, W, C], their sizes [N, 2], classes [N, k]) -> [N, cells, k, 5].

    Boxes, each with its rating.
    """
    graphdefs, states = zip(*map(nnx.split, (localizer, classifier)), strict=True)
    states = replicate(mesh, states)

    @jax.jit
    def run(
        states: tuple, images: jax.Array, sizes: jax.Array, classes: jax.Array
    ) -> jax.Array:
        images = _normalized(images, config)
        where, what = map(nnx.merge, graphdefs, states)
        found = dense_boxes(where, images, sizes, classes, config.data.crop)
        ratings = dense_ratings(what, images, sizes, classes)
        if ratings.shape != found.shape[:-1]:
            raise ValueError(
                "expected networks whose maps have as many cells, got "
                f"{list(found.shape[1:3])} of boxes and {list(ratings.shape[1:3])} of "
                "classes; train both on the same crop"
            )
        both = jax.numpy.concatenate([found, ratings[..., None]], axis=-1)
        return both.reshape(len(images), -1, *both.shape[-2:])

    def step(images: np.ndarray, sizes: np.ndarray, classes: np.ndarray) -> jax.Array:
        rows = {"images": images, "sizes": sizes, "classes": classes}
        return run(states, **shard_batch(mesh, rows))

    return step


def _normalized(images: jax.Array, config: Config) -> jax.Array:
    return Normalization(config.data.mean, config.data.std)(images)


def _batch_size(config: Config, mesh: Mesh) -> int:
    """Of the evaluation, in equal parts for the devices."""
    return -(-config.evaluation.batch_size // mesh.size) * mesh.size


class _Rows:
    """Localizations while they are filled in."""

    def __init__(self, examples: int, boxes: int):
        self.boxes = np.zeros((examples, boxes, 4))
        self.targets = np.zeros((examples, 4))
        self.labels = np.zeros(examples, np.int32)
        self.weights = np.zeros(examples, np.float32)

    def put(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Take in what a batch says of its examples; returns their numbers."""
        there = batch["index"] >= 0  # the others fill up the batch
        index = batch["index"][there]
        self.targets[index] = batch["box"][there]
        self.labels[index] = batch["label"][there]
        self.weights[index] = batch["weight"][there]
        return index

    def localizations(self, classes: np.ndarray) -> Localizations:
        return Localizations(
            boxes=self.boxes,
            classes=classes,
            targets=self.targets,
            labels=self.labels,
            weights=self.weights,
        )

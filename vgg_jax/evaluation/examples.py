"""Examples worth looking at, with the score map of the class that was predicted."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import center_crop, decode, rescale
from vgg_jax.evaluation.heat import ScoreMap, map_side, score_map
from vgg_jax.evaluation.metrics import predicted_classes
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet
from vgg_jax.training.workdir import replacing


@dataclasses.dataclass(frozen=True)
class Example:
    """A prediction: number in the source, true and predicted class, its posterior."""

    index: int
    label: int
    predicted: int
    posterior: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples of one row of the table, right ones first.

    Args:
        title: of the row.
        class_names: of all labels.
        crop: side of the training crop, in pixels.
        examples: [n] of them.
        names: of their images.
        maps: the predicted class's; all of one size.
    """

    title: str
    class_names: tuple[str, ...]
    crop: int
    examples: tuple[Example, ...]
    names: tuple[str, ...]
    maps: tuple[ScoreMap, ...]


def choose_examples(
    predictions: Predictions, count: int
) -> tuple[list[Example], list[Example]]:
    """(right, wrong) examples, at most `count` in all, half of each if possible.

    The right ones go through the classes in turn, in the source's order; the wrong ones
    are those with the highest posteriors, highest first.
    """
    index = np.flatnonzero(predictions.weights > 0)
    predicted = predicted_classes(predictions)
    examples = [
        Example(int(i), int(predictions.labels[i]), int(c), float(p))
        for i, c, p in zip(
            index, predicted, predictions.posteriors[index, predicted], strict=True
        )
    ]
    wrong = [e for e in examples if e.label != e.predicted]
    wrong.sort(key=lambda e: -e.posterior)
    by_class: dict[int, list[Example]] = {}
    for e in examples:
        if e.label == e.predicted:
            by_class.setdefault(e.label, []).append(e)
    turns = itertools.zip_longest(*(by_class[label] for label in sorted(by_class)))
    right = [e for turn in turns for e in turn if e is not None]
    few_wrong = min(len(wrong), max(count // 2, count - len(right)))
    return right[: count - few_wrong], wrong[:few_wrong]


def make_gallery(
    model: ConvNet,
    source: Source,
    config: Config,
    examples: Sequence[Example],
    *,
    title: str,
) -> Gallery:
    """Examples with the class score maps of a network run densely (section 3.2).

    Each image is enlarged until its map is large enough to look at, and its centre
    square is taken.
    """
    data = config.data
    side = map_side(model.layers, data.crop)
    names, maps = [], []
    for example in examples:
        stored = source[example.index]
        names.append(stored["name"])
        image = decode(stored["image"], model.in_channels, stored["name"])
        image = center_crop(rescale(image, side), side)
        maps.append(score_map(model, image, example.predicted, data.mean, data.std))
    return Gallery(
        title=title,
        class_names=tuple(source.class_names),
        crop=data.crop,
        examples=tuple(examples),
        names=tuple(names),
        maps=tuple(maps),
    )


def save_gallery(path: Path, gallery: Gallery) -> None:
    """Write an npz of arrays without objects, whole or not at all."""
    columns = zip(*map(dataclasses.astuple, gallery.examples), strict=True)
    arrays: dict[str, Any] = dict(zip(_COLUMNS, map(np.array, columns), strict=True))
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            **arrays,
            title=np.array(gallery.title),
            class_names=np.array(gallery.class_names),
            crop=np.array(gallery.crop),
            names=np.array(gallery.names),
            images=np.stack([found.image for found in gallery.maps]),
            scores=np.stack([found.scores for found in gallery.maps]),
            extents=np.array([found.extent for found in gallery.maps]),
        )


def load_gallery(path: Path) -> Gallery:
    """What `save_gallery` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        columns = [stored[name].tolist() for name in _COLUMNS]
        maps = zip(
            stored["images"], stored["scores"], stored["extents"].tolist(), strict=True
        )
        return Gallery(
            title=str(stored["title"]),
            class_names=tuple(stored["class_names"].tolist()),
            crop=int(stored["crop"]),
            examples=tuple(Example(*row) for row in zip(*columns, strict=True)),
            names=tuple(stored["names"].tolist()),
            maps=tuple(ScoreMap(i, s, tuple(e)) for i, s, e in maps),
        )


_COLUMNS = tuple(field.name for field in dataclasses.fields(Example))

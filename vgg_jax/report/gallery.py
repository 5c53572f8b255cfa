"""Examples worth looking at, with the score map of the class that was predicted."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import center_crop, decode, rescale
from vgg_jax.evaluation.errors import predicted_classes
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.files import load_arrays, save_arrays
from vgg_jax.models import ConvNet
from vgg_jax.report.heat import ScoreMap, map_side, score_map


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

    Each image is enlarged until its map is large enough to look at, and its center
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
    """Write a file of arrays, whole or not at all."""
    examples = zip(*map(dataclasses.astuple, gallery.examples), strict=True)
    save_arrays(
        path,
        dict(zip(_EXAMPLE, examples, strict=True))
        | {name: getattr(gallery, name) for name in _GALLERY}
        | {name: [getattr(m, name) for m in gallery.maps] for name in _MAP},
    )


def load_gallery(path: Path) -> Gallery:
    """What `save_gallery` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file; the message names it.
    """
    stored = load_arrays(path, (*_EXAMPLE, *_GALLERY, *_MAP))
    examples = zip(*(stored[name].tolist() for name in _EXAMPLE), strict=True)
    maps = zip(
        stored["image"], stored["scores"], stored["extent"].tolist(), strict=True
    )
    return Gallery(
        title=str(stored["title"]),
        class_names=tuple(stored["class_names"].tolist()),
        crop=int(stored["crop"]),
        examples=tuple(Example(*row) for row in examples),
        names=tuple(stored["names"].tolist()),
        maps=tuple(ScoreMap(image, scores, tuple(e)) for image, scores, e in maps),
    )


def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


_EXAMPLE, _MAP = _fields(Example), _fields(ScoreMap)
_GALLERY = ("title", "class_names", "crop", "names")

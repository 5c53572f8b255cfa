"""Examples worth looking at, each with the heat map of the predicted class."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from etils.epath import Path

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import center_crop, decode
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.evaluation.predictions import Predictions, predicted_classes
from vgg_jax.files import load_arrays, save_arrays
from vgg_jax.models import ConvNet
from vgg_jax.report.heat import HeatMap, heat_map


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
        title: the row in words.
        class_names: the name of each label.
        crop: side of the training crop, in pixels.
        examples: n predictions.
        names: n names of their images.
        maps: n heat maps of the predicted classes, all of one size.
    """

    title: str
    class_names: tuple[str, ...]
    crop: int
    examples: tuple[Example, ...]
    names: tuple[str, ...]
    maps: tuple[HeatMap, ...]


def choose_examples(
    predictions: Predictions, count: int
) -> tuple[list[Example], list[Example]]:
    """Chooses (right, wrong) examples, at most `count`, half of each if possible.

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
    """Makes the heat map of the predicted class for the center square of each example.

    Args:
        model: a classifier.
        source: the images.
        config: how the network sees an image.
        examples: the predictions to show.
        title: the row of the table that they are of, in words.
    """
    data = config.data
    preprocessing = preprocessing_of(data)
    names, maps = [], []
    for example in examples:
        stored = source[example.index]
        names.append(stored["name"])
        image = decode(
            stored["image"],
            model.in_channels,
            stored["name"],
            max_pixels=data.max_pixels,
        )
        square = center_crop(image, min(image.shape[:2]))
        maps.append(
            heat_map(model, square, example.predicted, data.crop, preprocessing)
        )
    return Gallery(
        title=title,
        class_names=tuple(source.class_names),
        crop=data.crop,
        examples=tuple(examples),
        names=tuple(names),
        maps=tuple(maps),
    )


def save_gallery(path: Path, gallery: Gallery) -> None:
    """Writes a gallery as a file of arrays, whole or not at all."""
    examples = zip(*map(dataclasses.astuple, gallery.examples), strict=True)
    save_arrays(
        path,
        dict(zip(_EXAMPLE, examples, strict=True))
        | {name: getattr(gallery, name) for name in _GALLERY}
        | {name: [getattr(m, name) for m in gallery.maps] for name in _MAP},
    )


def load_gallery(path: Path) -> Gallery:
    """Reads what `save_gallery` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged; the message names it.
    """
    stored = load_arrays(path, (*_EXAMPLE, *_GALLERY, *_MAP))
    examples = zip(*(stored[name].tolist() for name in _EXAMPLE), strict=True)
    maps = zip(
        *(stored["image"], stored["scores"]),
        *(stored["extent"].tolist(), stored["square"].tolist()),
        strict=True,
    )
    return Gallery(
        title=str(stored["title"]),
        class_names=tuple(stored["class_names"].tolist()),
        crop=int(stored["crop"]),
        examples=tuple(Example(*row) for row in examples),
        names=tuple(stored["names"].tolist()),
        maps=tuple(
            HeatMap(image, scores, tuple(extent), square)
            for image, scores, extent, square in maps
        ),
    )


def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


_EXAMPLE, _MAP = _fields(Example), _fields(HeatMap)
_GALLERY = ("title", "class_names", "crop", "names")

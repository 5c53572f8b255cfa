"""Examples worth looking at, and where in the image the network sees a class."""

import dataclasses
import itertools

import jax
import numpy as np
from flax import nnx

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import center_crop, decode, rescale
from vgg_jax.evaluation.metrics import predicted_classes
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Layer, Pool, output_size
from vgg_jax.training.steps import normalise

CELLS = 7  # a class score map to look at has at least this many cells a side


@dataclasses.dataclass(frozen=True)
class Example:
    """A prediction: number in the source, true and predicted class, its posterior."""

    index: int
    label: int
    predicted: int
    posterior: float


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


@dataclasses.dataclass(frozen=True)
class ScoreMap:
    """One class's scores over an image.

    Args:
        image: uint8 [side, side, C], what the network was given.
        scores: float32 [h, w], before soft-max.
        extent: left, right, bottom and top edge of the map in pixels of `image`, whose
            first pixel has its centre at 0; a cell lies around the centre of what it
            sees.
    """

    image: np.ndarray
    scores: np.ndarray
    extent: tuple[float, float, float, float]


def map_side(layers: tuple[Layer, ...], crop: int) -> int:
    """An image side, in pixels, for a map of at least `CELLS` cells.

    The training crop or one of the next multiples of half of it; preferably one whose
    last cell has its centre inside the image.
    """

    def inside(side: int) -> bool:
        begin, end = map_interval(layers, side)
        return end - (end - begin) / (2 * output_size(layers, side)) <= side - 1

    sides = (crop * halves // 2 for halves in itertools.count(2))
    enough = (side for side in sides if output_size(layers, side) >= CELLS)
    first = list(itertools.islice(enough, 4))
    return next(filter(inside, first), first[0])


def map_interval(layers: tuple[Layer, ...], side: int) -> tuple[float, float]:
    """Where a map's first cell begins and its last one ends, in pixels of the image."""
    stride, center = 1, 0.0
    for layer in layers:
        if isinstance(layer, Conv):
            center += ((layer.kernel - 1) / 2 - layer.padding) * stride
            stride *= layer.stride
        elif isinstance(layer, Pool):
            center += (layer.window - 1) / 2 * stride
            stride *= layer.stride
    begin = center - stride / 2
    return begin, begin + output_size(layers, side) * stride


def score_maps(
    model: ConvNet, source: Source, config: Config, examples: list[Example]
) -> list[ScoreMap]:
    """The class score map of the predicted class of each example (section 3.2).

    The image is enlarged until the map has `CELLS` cells a side, and its centre square
    is taken.
    """
    side = map_side(model.layers, config.data.crop)
    begin, end = map_interval(model.layers, side)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, image: jax.Array) -> jax.Array:
        images = normalise(image[None], config.data.mean, config.data.std)
        return nnx.merge(graphdef, state).score_map(images)[0]

    maps = []
    for example in examples:
        stored = source[example.index]
        image = decode(stored["image"], model.in_channels, stored["name"])
        image = center_crop(rescale(image, side), side)
        scores = np.asarray(run(state, image))[..., example.predicted]
        maps.append(ScoreMap(image, scores, (begin, end, end, begin)))
    return maps

"""Which examples are shown, and where a score map lies on its image."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from vgg_jax.config import Config
from vgg_jax.data.transforms import center_crop, rescale
from vgg_jax.evaluation.examples import (
    CELLS,
    Example,
    choose_examples,
    map_interval,
    map_side,
    score_maps,
)
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Layer, MaxPool, output_size


def make(confidences: list[tuple[int, int, float]], classes: int = 4) -> Predictions:
    """From (label, predicted class, its posterior); 0 leaves an example out."""
    posteriors = np.zeros((len(confidences), classes), np.float32)
    for row, (_, predicted, posterior) in zip(posteriors, confidences, strict=True):
        row[:] = (1 - posterior) / (classes - 1)
        row[predicted] = posterior
    return Predictions(
        posteriors=posteriors,
        labels=np.array([label for label, _, _ in confidences], np.int32),
        weights=np.array([p > 0 for _, _, p in confidences], np.float32),
    )


def numbers(examples: list[Example]) -> list[int]:
    return [example.index for example in examples]


def test_right_ones_in_turn_and_confident_mistakes_first() -> None:
    predictions = make(
        [
            (0, 0, 0.9),  # 0
            (0, 1, 0.5),  # 1 wrong
            (0, 0, 0.8),  # 2
            (0, 2, 0.0),  # 3 left out
            (3, 3, 0.6),  # 4
            (1, 2, 0.9),  # 5 wrong
            (1, 0, 0.7),  # 6 wrong
            (0, 0, 0.9),  # 7
            (3, 3, 0.9),  # 8
        ]
    )
    right, wrong = choose_examples(predictions, 6)
    assert numbers(right) == [0, 4, 2]
    assert numbers(wrong) == [5, 6, 1]
    assert dataclasses.astuple(wrong[0])[:3] == (5, 1, 2)
    assert wrong[0].posterior == pytest.approx(0.9)
    right, wrong = choose_examples(predictions, 4)
    assert (numbers(right), numbers(wrong)) == ([0, 4], [5, 6])


@pytest.mark.parametrize(("good", "bad"), [(9, 0), (9, 1), (1, 9), (0, 9), (2, 1)])
def test_the_other_kind_fills_up(good: int, bad: int) -> None:
    predictions = make([(0, 0, 0.9)] * good + [(1, 0, 0.9)] * bad)
    right, wrong = choose_examples(predictions, 6)
    assert len(right) + len(wrong) == min(6, good + bad)
    assert len(right) >= min(3, good) and len(wrong) >= min(3, bad)


def test_the_map_has_enough_cells_and_starts_at_the_crop() -> None:
    def layers(name: str, **options) -> tuple[Layer, ...]:
        make = vgg_jax.create_model
        return nnx.eval_shape(lambda: make(name, rngs=nnx.Rngs(0), **options)).layers

    assert map_side(layers("vgg16"), 224) == 448
    small = layers("vgg11", head="global_pool", ceil_mode=True)
    assert map_side(small, 28) == 210
    assert map_side(layers("nin_cifar"), 28) == 28


@pytest.mark.parametrize("side", [96, 101])
def test_where_the_map_lies(side: int) -> None:
    """A pixel that is not a number makes every cell that sees it not a number."""
    layers = (
        Conv("first", 1, kernel=5, stride=2, padding=1),
        MaxPool("pool", window=3, stride=2, ceil_mode=True),
        Conv("second", 1, kernel=3, padding=1),
        Conv("last", 1, kernel=4),
    )
    graphdef, abstract = nnx.split(
        nnx.eval_shape(
            lambda: ConvNet(
                layers,
                num_classes=1,
                in_channels=1,
                init="he",
                dtype="float32",
                rngs=nnx.Rngs(0),
            )
        )
    )
    state = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), abstract)
    model = nnx.merge(graphdef, state)
    images = np.zeros((side, side, side, 1), np.float32)
    images[np.arange(side), :, np.arange(side)] = np.nan  # one column in each
    seen = np.isnan(jax.jit(model.score_map)(images)[:, 0, :, 0])  # [column, cell]
    begin, end = map_interval(model.layers, side)
    cells = output_size(model.layers, side)
    assert seen.shape[1] == cells
    centers = begin + (np.arange(cells) + 0.5) * (end - begin) / cells
    for cell in range(2, cells - 2):  # cells that see no padding
        first, last = np.flatnonzero(seen[:, cell])[[0, -1]]
        assert (first + last) / 2 == centers[cell]


def test_score_maps_are_of_the_predicted_class(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    source = make_source([(40, 56), (32, 32), (64, 40)])
    examples = [Example(2, 0, 4, 0.5), Example(0, 1, 6, 0.5)]
    found = score_maps(model, source, config, examples)
    for example, result in zip(examples, found, strict=True):
        side = map_side(model.layers, config.data.crop)
        image = center_crop(rescale(source.images[example.index], side), side)
        np.testing.assert_array_equal(result.image, image)
        pixels = np.float32((image - np.array(config.data.mean)) / config.data.std)
        expected = model.score_map(jnp.asarray(pixels[None]))[0, ..., example.predicted]
        chex.assert_shape(result.scores, (CELLS, CELLS))
        chex.assert_trees_all_close(result.scores, np.asarray(expected), atol=1e-4)
        left, right, bottom, top = result.extent
        assert (left, right) == (top, bottom) and left < right

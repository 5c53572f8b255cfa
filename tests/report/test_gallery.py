"""Which examples are shown, and the file that keeps them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import chex
import numpy as np
import pytest

from vgg_jax.config import Config
from vgg_jax.data.transforms import center_crop, rescale
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet
from vgg_jax.report.gallery import (
    Example,
    choose_examples,
    load_gallery,
    make_gallery,
    save_gallery,
)
from vgg_jax.report.heat import heat_map


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


def test_gallery_is_of_the_predicted_class_and_survives_its_file(
    model: ConvNet, config: Config, make_source: Callable, tmp_path: Path
) -> None:
    source = make_source([(40, 56), (32, 32), (64, 40)])
    examples = [Example(2, 0, 4, 0.5), Example(0, 1, 6, 0.25)]
    made = make_gallery(model, source, config, examples, title="a row")
    assert made.names == ("picture2.png", "picture0.png")
    save_gallery(tmp_path / "examples.npz", made)
    assert [path.name for path in tmp_path.iterdir()] == ["examples.npz"]
    found = load_gallery(tmp_path / "examples.npz")
    chex.assert_trees_all_equal(dataclasses.asdict(found), dataclasses.asdict(made))
    assert found.title == "a row" and found.examples == tuple(examples)
    crop = config.data.crop
    for example, result in zip(examples, found.maps, strict=True):
        image = source.images[example.index]
        square = center_crop(image, min(image.shape[:2]))
        np.testing.assert_array_equal(result.image, rescale(square, crop))
        expected = heat_map(
            model, square, example.predicted, crop, preprocessing_of(config.data)
        )
        np.testing.assert_array_equal(result.scores, expected.scores)
        assert result.extent == expected.extent
        assert result.square == expected.square == crop // 4

"""The curves and the sheet of predictions."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vgg_jax.config import Config
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet
from vgg_jax.report.figures import (
    curves,
    draw_curves,
    draw_heat,
    draw_predictions,
    heat_figure,
    read_metrics,
)
from vgg_jax.report.gallery import choose_examples, make_gallery
from vgg_jax.report.heat import HeatMap, enlarge, explain, overlay

LINES = [
    {
        "step": i,
        "epoch": i / 10,
        "train_loss": 2 / i,
        "train_top1_error": 0.9 / i,
        "learning_rate": 1e-2 if i < 20 else 1e-3 if i < 30 else 1e-4,
    }
    for i in range(1, 41)
] + [
    {
        "step": i,
        "epoch": i / 10,
        "validation_loss": 0.3 + abs(i - 20) / 20,
        "validation_top1_error": 0.1 + abs(i - 20) / 100,
        "validation_top5_error": 0.0,
    }
    for i in range(10, 41, 10)
]


def test_curves_show_the_numbers() -> None:
    loss, error, rate = curves(LINES).axes
    for axes, name in ((loss, "loss"), (error, "top1_error")):
        training, validation = axes.lines[:2]
        expected = [line for line in LINES if f"train_{name}" in line]
        np.testing.assert_allclose(
            training.get_ydata(), [line[f"train_{name}"] for line in expected]
        )
        np.testing.assert_allclose(validation.get_xdata(), [1, 2, 3, 4])
    assert any("10.00% at epoch 2" in text.get_text() for text in error.texts)
    assert rate.get_yscale() == "log"
    # A line through every panel where the rate falls, and its value.
    for axes in (loss, error, rate):
        upright = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert {2.0, 3.0} <= {float(line.get_xdata()[0]) for line in upright}
    assert [text.get_text() for text in rate.texts] == ["0.01", "0.001", "0.0001"]


def test_a_rate_that_falls_all_the_time_is_a_curve_with_its_height() -> None:
    lines = [
        line | {"learning_rate": 0.1 * min(i / 3, 1 - i / 50)}
        for i, line in enumerate(LINES)
        if "learning_rate" in line
    ]
    loss, error, rate = curves(lines).axes
    assert rate.get_yscale() == "linear"
    assert [text.get_text() for text in rate.texts] == ["0.094"]
    for axes in (loss, error, rate):
        assert not [line for line in axes.lines if len(set(line.get_xdata())) == 1]


def test_a_warm_up_is_not_marked() -> None:
    lines = [
        line | {"learning_rate": line["learning_rate"] * min(1.0, line["step"] / 8)}
        for line in LINES
        if "learning_rate" in line
    ]
    _, _, rate = curves(lines).axes
    assert [text.get_text() for text in rate.texts] == ["0.01", "0.001", "0.0001"]


def test_curves_of_boxes_show_the_error_of_boxes() -> None:
    lines = [
        {name.replace("top1_error", "box_error"): value for name, value in line.items()}
        for line in LINES
    ]
    _, error, _ = curves(lines).axes
    expected = [line["train_box_error"] for line in lines if "train_box_error" in line]
    np.testing.assert_allclose(error.lines[0].get_ydata(), expected)
    assert any("10.00% at epoch 2" in text.get_text() for text in error.texts)


def test_a_line_that_a_validation_cuts_short_is_no_tooth() -> None:
    """The points are means over equally many steps, wherever the lines end."""
    losses = np.random.default_rng(0).uniform(1, 2, 400)
    cut = [*range(50, 401, 50), 86, 172, 258, 344]
    ends = sorted(cut)
    lines = [
        {
            "step": end,
            "epoch": end / 86,
            "train_loss": losses[begin:end].mean(),
            "train_top1_error": 0.5,
        }
        for begin, end in itertools.pairwise([0, *ends])
    ]
    loss, error, _ = curves(lines).axes
    shown = dict(zip(ends, loss.lines[0].get_ydata(), strict=True))
    for end in range(50, 401, 50):  # every line but those that are cut short
        assert shown[end] == pytest.approx(losses[end - 50 : end].mean())
    # A cut line's own steps count as they are, those before it with their line's mean.
    mean = losses[50:86].sum() + 14 * losses[:50].mean()
    assert shown[86] == pytest.approx(mean / 50)
    np.testing.assert_allclose(error.lines[0].get_ydata(), 0.5)
    np.testing.assert_allclose(loss.lines[0].get_xdata(), np.array(ends) / 86)


@pytest.mark.parametrize("lines", [LINES, LINES[:1], LINES[-1:]])
def test_curves_of_a_run_of_any_length(tmp_path: Path, lines: list[dict]) -> None:
    metrics, output = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(metrics, output)
    assert cv2.imread(str(output)).shape == (1425, 1500, 3)
    assert sorted(tmp_path.iterdir()) == [output, metrics]


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("right", [0, 3, 5])
def test_sheet_of_predictions(
    model: ConvNet, config: Config, make_source: Callable, tmp_path: Path, right: int
) -> None:
    source = make_source([(40, 56)] * 5)
    source.class_names = tuple(f"$_$ is not a formula, {i}" for i in range(7))
    labels = np.array(source.labels)
    shown = np.where(np.arange(5) < right, labels, (labels + 1) % 7)
    predictions = Predictions(
        posteriors=np.eye(7, dtype=np.float32)[shown] * 0.9,
        labels=labels,
        weights=np.ones(5, np.float32),
    )
    output = tmp_path / "predictions.png"
    right_ones, wrong_ones = choose_examples(predictions, 24)
    draw_predictions(
        make_gallery(model, source, config, right_ones + wrong_ones, title="a row"),
        output,
    )
    picture = cv2.imread(str(output))
    assert picture.shape[1] == 1800
    assert picture.std() > 20
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("shape", [(16, 16, 1), (300, 200, 3), (16, 640, 3)])
def test_picture_of_a_heat_map(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    scores = np.random.default_rng(1).normal(size=(7, 9)).astype(np.float32)
    heat = HeatMap(image, scores, (-0.5, width - 0.5, height - 0.5, -0.5), 4)
    figure = heat_figure(heat, 16, "$a_b$ & co", 0.875)
    picture, map_, bar = figure.axes
    shown = enlarge(heat)
    np.testing.assert_array_equal(
        np.atleast_3d(picture.images[0].get_array()), shown.image
    )
    np.testing.assert_array_equal(map_.images[0].get_array(), overlay(shown))
    # The class, its posterior and the scale of the colors.
    assert figure.get_suptitle() == "$a_b$ & co  87.5%"
    np.testing.assert_allclose(bar.get_xlim(), (scores.min(), scores.max()))
    assert " ".join(bar.get_xlabel().split()) == explain(heat, 16)
    draw_heat(heat, 16, "$a_b$ & co", 0.875, tmp_path / "heat.png")
    drawn = cv2.imread(str(tmp_path / "heat.png"))
    assert drawn.shape[1] == 1050 and 200 < drawn.shape[0] < 1500
    # No map is higher than another where all of its scores are the same.
    flat = dataclasses.replace(heat, scores=scores * 0)
    draw_heat(flat, 16, "x", 1.0, tmp_path / "heat.png")


def test_matplotlib_is_used_without_its_global_state() -> None:
    script = (
        "import sys, vgg_jax.report.artifacts; "
        "print('matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "epoch": step / 2} for step in (1, 2)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"ste')
    assert read_metrics(path) == lines


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = b'{"step": 1, "epoch": 0.5}'
    for second in (
        *(b'{"st', b"\xff\xfe", b"3", b'{"epoch": 1}', b'{"step": 1}'),
        line[:-1] + b', "train_loss": "0.7"}',
    ):
        path.write_bytes(b"\n".join([line, second, line, b""]))
        with pytest.raises(
            ValueError,
            match=r"metrics\.jsonl is damaged in line 2 .*; remove that line",
        ):
            read_metrics(path)

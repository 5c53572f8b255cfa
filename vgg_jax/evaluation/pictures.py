"""Pictures of a run: its curves, and a sheet of predictions with class score maps."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator, PercentFormatter

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.evaluation.examples import Example, ScoreMap, choose_examples, score_maps
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.models import ConvNet

INK, MUTED, RULE = "#1f2933", "#64707d", "#dde2e8"
TRAIN, VALIDATION, RATE = "#7b9cc9", "#c2410c", "#475569"
RIGHT, WRONG = "#1f7a4d", "#b4232a"
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#14213d", "#4c3a86", "#c2416b", "#f59e4c", "#fff3c4"]
)
COLUMNS = 4

Lines = list[dict[str, Any]]


def draw_curves(metrics: Path, output: Path) -> None:
    """Loss, top-1 error and learning rate against epochs, from metrics.jsonl to a PNG.

    Raises:
        ValueError: no line in the file.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if not lines:
        raise ValueError(
            f"expected lines in {metrics}, got none: nothing was logged yet"
        )
    figure = Figure(figsize=(10, 9.5), dpi=150, layout="constrained")
    panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.6))
    loss, error, rate = panels
    for axes in panels:
        _style(axes)
    _draw_pair(loss, lines, "loss")
    loss.set_ylabel("loss (nats)", color=INK)
    loss.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=11)
    _draw_pair(error, lines, "top1_error")
    error.set_ylabel("top-1 error", color=INK)
    error.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _mark_best(error, *_series(lines, "validation_top1_error"))
    _draw_rate(rate, panels, *_series(lines, "learning_rate"))
    rate.set_xlabel("epochs", color=INK)
    _save(figure, output)


def draw_predictions(
    model: ConvNet,
    source: Source,
    config: Config,
    output: Path,
    predictions: Predictions,
    count: int = 24,
) -> None:
    """A sheet of predictions, right ones and the most confident mistakes, as a PNG.

    Each is the picture, and the picture under the score map of the predicted class, of
    the network run densely on it (section 3.2).
    """
    right, wrong = choose_examples(predictions, count)
    groups = [
        (title, color, examples)
        for title, color, examples in (
            ("Right", RIGHT, right),
            ("Wrong: the most confident mistakes", WRONG, wrong),
        )
        if examples
    ]
    rows = [-(-len(examples) // COLUMNS) for _, _, examples in groups]
    heights = [0.55 + 2.1 * n for n in rows] + [0.75]  # inches; the last is the note
    figure = Figure(figsize=(12, sum(heights)), dpi=150)
    *parts, foot = figure.subfigures(len(heights), height_ratios=heights)
    for part, height, n, (title, color, examples) in zip(
        parts, heights, rows, groups, strict=False
    ):
        part.text(
            0.02, 1 - 0.3 / height, title, color=color, fontsize=15, weight="bold",
            va="center",
        )  # fmt: skip
        maps = score_maps(model, source, config, examples)
        grid = part.add_gridspec(
            n, COLUMNS, left=0.02, right=0.98, top=1 - 1.0 / height, bottom=0.1 / height,
            wspace=0.1, hspace=0.42,
        )  # fmt: skip
        for at, example, found in zip(range(n * COLUMNS), examples, maps, strict=False):
            pair = grid[at].subgridspec(1, 2, wspace=0.04).subplots()
            _draw_example(pair, example, found, source.class_names, color)
    if groups:
        _draw_note(foot, config, maps[0])
    _save(figure, output)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10)


def _series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the lines that have this name."""
    found = [(line["epoch"], line[name]) for line in lines if name in line]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _draw_pair(axes: Axes, lines: Lines, name: str) -> None:
    epochs, values = _series(lines, f"train_{name}")
    axes.plot(epochs, values, color=TRAIN, linewidth=1.5, label="training")
    epochs, values = _series(lines, f"validation_{name}")
    axes.plot(
        epochs, values, color=VALIDATION, linewidth=2, marker="o", markersize=4,
        label="validation",
    )  # fmt: skip
    axes.set_ylim(bottom=0)


def _mark_best(axes: Axes, epochs: list[float], errors: list[float]) -> None:
    if not errors:
        return
    best = int(np.argmin(errors))
    axes.plot(
        epochs[best],
        errors[best],
        "o",
        markersize=11,
        color=VALIDATION,
        fillstyle="none",
    )
    axes.annotate(
        f"lowest {errors[best]:.2%}", (epochs[best], errors[best]),
        xytext=(0, 14), textcoords="offset points", ha="right", va="bottom",
        color=VALIDATION, fontsize=11, weight="bold",
    )  # fmt: skip


def _draw_rate(
    axes: Axes, panels: Sequence[Axes], epochs: list[float], rates: list[float]
) -> None:
    """The rate, and a line through every panel where it falls."""
    axes.set_ylabel("learning rate", color=INK)
    if not rates:
        return
    axes.step(epochs, rates, where="post", color=RATE, linewidth=2)
    axes.set_yscale("log")
    axes.set_ylim(min(rates) / 3, max(rates) * 4)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.annotate(
        f"{rates[0]:g}", (epochs[0], rates[0]), xytext=(4, 5), color=RATE,
        textcoords="offset points", fontsize=10,
    )  # fmt: skip
    for i in range(1, len(rates)):
        if rates[i] != rates[i - 1]:
            for panel in panels:
                panel.axvline(epochs[i], color=RATE, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{rates[i]:g}", (epochs[i], rates[i]), xytext=(4, 5), color=RATE,
                textcoords="offset points", fontsize=10,
            )  # fmt: skip


def _draw_example(
    pair: Sequence[Axes],
    example: Example,
    found: ScoreMap,
    class_names: Sequence[str],
    color: str,
) -> None:
    side = found.image.shape[0]
    pixels = found.image[..., 0] if found.image.shape[-1] == 1 else found.image
    grey = found.image.mean(axis=-1)
    pair[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
    pair[1].imshow(grey, cmap="gray", vmin=0, vmax=255)
    pair[1].imshow(found.scores, extent=found.extent, cmap=HEAT, alpha=0.72)
    for axes in pair:
        axes.set_xlim(-0.5, side - 0.5)
        axes.set_ylim(side - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(RULE)
    lines = [f"{_short(class_names[example.predicted])}  {example.posterior:.1%}"]
    if example.label != example.predicted:
        lines.append(f"truth: {_short(class_names[example.label])}")
    for line, height, ink in zip(
        lines[::-1], (1.04, 1.19), (MUTED, color), strict=False
    ):
        pair[0].text(
            0, height, line, transform=pair[0].transAxes, color=ink, fontsize=10.5,
        )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _draw_note(part: SubFigure, config: Config, found: ScoreMap) -> None:
    side = found.image.shape[0]
    h, w = found.scores.shape
    part.text(
        0.02, 0.5,
        f"Beside each picture: the scores of the predicted class, {h} x {w} cells, by the "
        f"network run on the whole picture at {side} x {side} pixels\n"
        f"({side / config.data.crop:g} times the training crop). Each picture has its own "
        "range, dark lowest, bright highest.",
        color=MUTED, fontsize=10.5, va="center", linespacing=1.5,
    )  # fmt: skip


def _save(figure: Figure, output: Path) -> None:
    """The whole picture or none."""
    partial = output.with_name(output.name + ".partial")
    figure.savefig(partial, format="png", facecolor="white")
    os.replace(partial, output)

"""Pictures of a run: its curves, and a sheet of predictions with class score maps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator, PercentFormatter

from vgg_jax.report import style
from vgg_jax.report.gallery import Example, Gallery
from vgg_jax.report.heat import ScoreMap, overlay

Lines = list[dict[str, Any]]
COLUMNS = 4


def draw_curves(metrics: Path, output: Path) -> None:
    """Loss, top-1 error and learning rate against epochs, from metrics.jsonl to a PNG.

    A run that has logged nothing yet leaves no picture.
    """
    lines = read_metrics(metrics)
    if lines:
        style.save(curves(lines), output)


def read_metrics(path: Path) -> Lines:
    """The objects in a metrics.jsonl, but for a last line that a kill cut short.

    Raises:
        ValueError: a line that is no such object; the message names it.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged in line {number} ({error}); remove that line"
            ) from error
    return found


def curves(lines: Lines, size: tuple[float, float] = (10, 9.5)) -> Figure:
    """The figure of `draw_curves`, from the objects in metrics.jsonl.

    Args:
        lines: the objects.
        size: width and height in inches; what is written on it has the same size.
    """
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.6))
    loss, error, rate = panels
    for axes in panels:
        style.quiet(axes)
    learns_boxes = any("train_box_error" in line for line in lines)
    name = "box_error" if learns_boxes else "top1_error"
    _draw_pair(loss, lines, "loss")
    unit = "half a squared distance" if learns_boxes else "nats"
    loss.set_ylabel(f"loss ({unit})", color=style.INK)
    loss.legend(loc="upper right", frameon=False, labelcolor=style.INK, fontsize=11)
    _draw_pair(error, lines, name)
    readable = "boxes that are wrong" if learns_boxes else "top-1 error"
    error.set_ylabel(readable, color=style.INK)
    error.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _mark_best(error, *_series(lines, f"validation_{name}"))
    _draw_rate(rate, panels, *_series(lines, "learning_rate"))
    rate.set_xlabel("epochs", color=style.INK)
    return figure


def _series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the lines that have this name."""
    found = [(line["epoch"], line[name]) for line in lines if name in line]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _draw_pair(axes: Axes, lines: Lines, name: str) -> None:
    training = _series(lines, f"train_{name}")
    axes.plot(*training, color=style.TRAIN, linewidth=1.5, label="training")
    validation = _series(lines, f"validation_{name}")
    axes.plot(
        *validation,
        color=style.VALIDATION,
        linewidth=2,
        marker="o",
        markersize=4,
        label="validation",
    )
    axes.set_ylim(bottom=0)


def _mark_best(axes: Axes, epochs: list[float], errors: list[float]) -> None:
    if not errors:
        return
    best = int(np.argmin(errors))
    at = (epochs[best], errors[best])
    axes.plot(*at, "o", markersize=11, color=style.VALIDATION, fillstyle="none")
    axes.text(
        0.99,
        0.95,
        f"lowest on validation: {errors[best]:.2%} at epoch {epochs[best]:.4g}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=style.VALIDATION,
        fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
    )


def _draw_rate(
    axes: Axes, panels: Sequence[Axes], epochs: list[float], rates: list[float]
) -> None:
    """The rate, and a line through every panel where it changes."""
    axes.set_ylabel("learning rate", color=style.INK)
    if not rates:
        return
    axes.step(epochs, rates, where="post", color=style.RATE, linewidth=2)
    axes.set_yscale("log")
    axes.set_ylim(min(rates) / 3, max(rates) * 4)
    axes.yaxis.set_minor_locator(NullLocator())
    for i, (epoch, rate) in enumerate(zip(epochs, rates, strict=True)):
        if i and rate == rates[i - 1]:
            continue
        if i:
            for panel in panels:
                panel.axvline(epoch, color=style.RATE, linewidth=1, linestyle="--")
        axes.annotate(
            f"{rate:g}",
            (epoch, rate),
            xytext=(5, 5),
            textcoords="offset points",
            color=style.RATE,
            fontsize=10,
        )


def draw_predictions(gallery: Gallery, output: Path) -> None:
    """A sheet of predictions, right ones and the most confident mistakes, as a PNG.

    Each is the picture, and the picture under the score map of the predicted class.
    """
    shown = list(zip(gallery.examples, gallery.maps, strict=True))
    right = [pair for pair in shown if pair[0].label == pair[0].predicted]
    wrong = [pair for pair in shown if pair[0].label != pair[0].predicted]
    groups = [
        group
        for group in (
            ("Right", style.RIGHT, right),
            ("Wrong: the most confident mistakes", style.WRONG, wrong),
        )
        if group[-1]
    ]
    rows = [-(-len(examples) // COLUMNS) for _, _, examples in groups]
    heights = [0.45 + 2.0 * n for n in rows] + [0.7]  # inches; the last is the note's
    figure = Figure(figsize=(12, sum(heights)), dpi=150)
    parts: Any = figure.subfigures(len(heights), height_ratios=heights)
    for part, height, n, (title, color, examples) in zip(
        parts, heights, rows, groups, strict=False
    ):
        part.text(
            0.02, 1 - 0.35 / height, title, color=color, fontsize=15, weight="bold"
        )
        grid = part.add_gridspec(
            n,
            COLUMNS,
            left=0.02,
            right=0.98,
            top=1 - 0.95 / height,
            bottom=0.15 / height,
            wspace=0.1,
            hspace=0.45,
        )
        for at, (example, found) in enumerate(examples):
            pair = grid[at].subgridspec(1, 2, wspace=0.04).subplots()
            _draw_example(pair, example, found, gallery.class_names, color)
    _draw_note(parts[-1], gallery.crop, gallery.maps[0])
    style.save(figure, output)


def _draw_example(
    pair: Sequence[Axes],
    example: Example,
    found: ScoreMap,
    class_names: Sequence[str],
    color: str,
) -> None:
    picture = found.image if found.image.shape[-1] == 3 else found.image[..., 0]
    for axes, pixels in zip(pair, (picture, overlay(found)), strict=True):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(style.RULE)
    predicted = f"{short(class_names[example.predicted])}  {example.posterior:.1%}"
    true = f"truth: {short(class_names[example.label])}"
    for text, ink, height in ((predicted, color, 1.2), (true, style.MUTED, 1.05)):
        pair[0].text(
            0,
            height,
            text,
            transform=pair[0].transAxes,
            color=ink,
            fontsize=10.5,
            parse_math=False,
        )


def short(name: str) -> str:
    """A class name that fits a picture."""
    return name if len(name) <= 24 else name[:23] + "\N{HORIZONTAL ELLIPSIS}"


def _draw_note(part: SubFigure, crop: int, found: ScoreMap) -> None:
    side = found.image.shape[0]
    height, width = found.scores.shape
    part.text(
        0.02,
        0.5,
        f"Beside each picture: the scores of the predicted class, {height} x {width} "
        f"cells, of the network on its\ncenter square at {side} x {side} pixels, "
        f"{side / crop:g} times the training crop. Every picture has its "
        "own range.",
        color=style.MUTED,
        fontsize=10.5,
        va="center",
        linespacing=1.5,
    )
    legend = part.add_axes((0.78, 0.5, 0.2, 0.2))
    legend.imshow(np.linspace(0, 1, 256)[None], cmap=style.HEAT, aspect="auto")
    legend.set_xticks([0, 255], ["lowest score", "highest"])
    first, last = legend.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    legend.tick_params(length=0, colors=style.MUTED, labelsize=10)
    legend.set_yticks([])
    legend.spines[:].set_visible(False)

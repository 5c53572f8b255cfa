"""Figures: training curves, a sheet of predictions, and the heat map of an image."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils.epath import Path
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator, PercentFormatter

from vgg_jax.files import parse_metrics, replacing
from vgg_jax.report.gallery import Example, Gallery
from vgg_jax.report.heat import HEAT, HeatMap, enlarge, explain, overlay

Lines = list[dict[str, Any]]
MOST_FALLS = 10  # of the rate, that are marked one by one
COLUMNS = 4

INK, MUTED, RULE = "#1f2933", "#64707d", "#dde2e8"
TRAIN, VALIDATION, RATE = "#7b9cc9", "#c2410c", "#475569"
RIGHT, WRONG = "#1f7a4d", "#b4232a"


def style_axes(axes: Axes) -> None:
    """Gives axes a light grid, and no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10)


def save_figure(figure: Figure, output: Path) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with replacing(output) as partial:
        figure.savefig(partial, format="png", facecolor="white")


def draw_curves(metrics: Path, output: Path) -> None:
    """Draws loss, error and learning rate by epoch, from a metrics.jsonl to a PNG.

    A run that has logged nothing yet leaves no picture.
    """
    lines = read_metrics(metrics)
    if lines:
        save_figure(curves(lines), output)


def read_metrics(path: Path) -> Lines:
    """Reads the objects in a metrics.jsonl, but for a last line that a kill cut short.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not the metrics of a step; the message names it.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            break
        lines.append(parse_metrics(text, number, path))
    return lines


def curves(lines: Lines, size: tuple[float, float] = (10, 9.5)) -> Figure:
    """Draws the figure of `draw_curves` from the objects in metrics.jsonl.

    A line that a validation or a checkpoint cut short averages fewer steps than others
    do, and would stand out as a tooth. So each point of a training curve is the mean
    over as many steps as the longest line has, up to that point.

    Args:
        lines: the objects.
        size: width and height in inches; what is written on it has the same size.
    """
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.6))
    loss, error, rate = panels
    for axes in panels:
        style_axes(axes)
    learns_boxes = any("train_box_error" in line for line in lines)
    name = "box_error" if learns_boxes else "top1_error"
    _draw_pair(loss, lines, "loss")
    unit = "half a squared distance" if learns_boxes else "nats"
    loss.set_ylabel(f"loss ({unit})", color=INK)
    loss.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=11)
    _draw_pair(error, lines, name)
    readable = "boxes that are wrong" if learns_boxes else "top-1 error"
    error.set_ylabel(readable, color=INK)
    error.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _mark_best(error, *_series(lines, f"validation_{name}"))
    _draw_rate(rate, panels, *_series(lines, "learning_rate"))
    rate.set_xlabel("epochs", color=INK)
    return figure


def _series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the lines that have this name."""
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _equal_means(lines: Lines, name: str) -> tuple[list[float], np.ndarray]:
    """(epochs, means over equally many steps) of a metric of training.

    Each line holds the mean over the steps since the line before it. The sum over all
    steps so far, linear within a line, gives the mean over any interval.
    """
    epochs, values = _series(lines, name)
    steps = np.array([0, *(line["step"] for line in lines if name in line)])
    lengths = np.diff(steps)
    sums = np.cumsum([0, *(lengths * values)])
    first = np.maximum(steps[1:] - lengths.max(initial=1), 0)
    means = (sums[1:] - np.interp(first, steps, sums)) / (steps[1:] - first)
    return epochs, means


def _draw_pair(axes: Axes, lines: Lines, name: str) -> None:
    training = _equal_means(lines, f"train_{name}")
    axes.plot(*training, color=TRAIN, linewidth=1.5, label="training")
    validation = _series(lines, f"validation_{name}")
    axes.plot(
        *validation,
        color=VALIDATION,
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
    axes.plot(
        *(epochs[best], errors[best]),
        "o",
        markersize=11,
        color=VALIDATION,
        fillstyle="none",
    )
    axes.text(
        0.99,
        0.95,
        f"lowest on validation: {errors[best]:.2%} at epoch {epochs[best]:.3g}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=VALIDATION,
        fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
    )


def _draw_rate(
    axes: Axes, panels: Sequence[Axes], epochs: list[float], rates: list[float]
) -> None:
    """Draws the rate, and where it falls in steps, a line through every panel.

    A rate that falls all the time, as along a cosine, is a curve from its height to 0.
    """
    axes.set_ylabel("learning rate", color=INK)
    if not rates:
        return
    axes.step(epochs, rates, where="post", color=RATE, linewidth=2)
    falls = [i for i in range(1, len(rates)) if rates[i] < rates[i - 1]]
    is_curve = len(falls) > MOST_FALLS
    height = int(np.argmax(rates))
    if is_curve:
        axes.set_ylim(0, max(rates) * 1.3)
    else:
        axes.set_yscale("log")
        axes.set_ylim(min(rates) / 3, max(rates) * 4)
        axes.yaxis.set_minor_locator(NullLocator())
        for i in falls:
            for panel in panels:
                panel.axvline(epochs[i], color=RATE, linewidth=1, linestyle="--")
    for i in [height] if is_curve else [height, *falls]:
        axes.annotate(
            f"{rates[i]:.3g}",
            (epochs[i], rates[i]),
            xytext=(5, 5),
            textcoords="offset points",
            color=RATE,
            fontsize=10,
        )


def draw_predictions(gallery: Gallery, output: Path) -> None:
    """Draws a sheet of right predictions and the most confident mistakes, as a PNG.

    Each is the picture, and the picture under the heat map of the predicted class.
    """
    shown = list(zip(gallery.examples, gallery.maps, strict=True))
    right = [pair for pair in shown if pair[0].label == pair[0].predicted]
    wrong = [pair for pair in shown if pair[0].label != pair[0].predicted]
    groups = [
        group
        for group in (
            ("Right", RIGHT, right),
            ("Wrong: the most confident mistakes", WRONG, wrong),
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
        for place, (example, heat) in enumerate(examples):
            pair = grid[place].subgridspec(1, 2, wspace=0.04).subplots()
            _draw_example(pair, example, heat, gallery.class_names, color)
    _draw_note(parts[-1], gallery.crop, gallery.maps[0])
    save_figure(figure, output)


def _draw_example(
    pair: Sequence[Axes],
    example: Example,
    heat: HeatMap,
    class_names: Sequence[str],
    color: str,
) -> None:
    _draw_image_and_heat(pair, heat)
    predicted = f"{shorten(class_names[example.predicted])}  {example.posterior:.1%}"
    true = f"truth: {shorten(class_names[example.label])}"
    for text, ink, height in ((predicted, color, 1.2), (true, MUTED, 1.05)):
        pair[0].text(
            0,
            height,
            text,
            transform=pair[0].transAxes,
            color=ink,
            fontsize=10.5,
            parse_math=False,
        )


def _draw_image_and_heat(pair: Sequence[Axes], heat: HeatMap) -> None:
    """Draws an image on the first axes and its heat map on the second."""
    shown = enlarge(heat)
    image = shown.image if shown.image.shape[-1] == 3 else shown.image[..., 0]
    for axes, pixels in zip(pair, (image, overlay(shown)), strict=True):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(RULE)


def shorten(name: str) -> str:
    """Cuts a class name to a length that fits a picture."""
    return name if len(name) <= 24 else name[:23] + "\N{HORIZONTAL ELLIPSIS}"


def _draw_note(part: SubFigure, crop: int, heat: HeatMap) -> None:
    note = (
        f"Beside each picture: {explain(heat, crop)} Every picture has its own range."
    )
    part.text(
        0.02,
        0.5,
        textwrap.fill(note, 110),
        color=MUTED,
        fontsize=10.5,
        va="center",
        linespacing=1.5,
    )
    draw_legend(part.add_axes((0.78, 0.5, 0.2, 0.2)))


def draw_legend(legend: Axes) -> None:
    """Draws the colors of heat maps on axes, from the lowest to the highest value."""
    legend.imshow(np.linspace(0, 1, 256)[None], cmap=HEAT, aspect="auto")
    legend.set_xticks([0, 255], ["lowest", "highest"])
    first, last = legend.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    legend.tick_params(length=0, colors=MUTED, labelsize=10)
    legend.set_yticks([])
    legend.spines[:].set_visible(False)


def draw_heat(
    heat: HeatMap, crop: int, class_name: str, posterior: float, output: Path
) -> None:
    """Draws a picture, its heat map, the class with its posterior and the scale: a PNG.

    Args:
        heat: the heat map of the class.
        crop: side of the training crop, in pixels.
        class_name: the class.
        posterior: its posterior, from 0 to 1.
        output: the file to write.
    """
    save_figure(heat_figure(heat, crop, class_name, posterior), output)


def heat_figure(heat: HeatMap, crop: int, class_name: str, posterior: float) -> Figure:
    """Draws the figure of `draw_heat`: two panels, beside or above each other."""
    height, width = heat.image.shape[:2]
    wide = width > 1.5 * height
    figure = Figure(
        figsize=(7, 2 * min(6.6 * height / width, 5) + 1.6)
        if wide
        else (7, min(3.1 * height / width, 8) + 1.4),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(2, 1) if wide else figure.subplots(1, 2)
    _draw_image_and_heat(panels, heat)
    figure.suptitle(
        f"{shorten(class_name)}  {posterior:.1%}",
        color=INK,
        fontsize=14,
        weight="bold",
        parse_math=False,
    )
    low, high = float(heat.scores.min()), float(heat.scores.max())
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high if high > low else low + 1), HEAT),
        ax=panels,
        location="bottom",
        aspect=50,
        pad=0.03,
    )
    bar.set_label(
        textwrap.fill(explain(heat, crop), 95), color=MUTED, fontsize=9, linespacing=1.4
    )
    bar.ax.tick_params(colors=MUTED, labelsize=9)
    bar.outline.set_edgecolor(RULE)  # type: ignore[operator]
    return figure

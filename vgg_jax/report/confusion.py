"""The confusion matrix as a table in a file, and as a picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vgg_jax.files import write_text
from vgg_jax.report import style
from vgg_jax.report.figures import short

NAMED = 20  # classes, at most, that the picture has room to name


def write_csv(path: Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Counts int [C, C]: a row a true class, a column a predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *class_names])
    for name, row in zip(class_names, matrix.tolist(), strict=True):
        writer.writerow([name, *row])
    write_text(path, text.getvalue())


def read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """(counts int [C, C], class names), as `write_csv` wrote them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file; the message names it.
    """
    try:
        (_, *names), *rows = csv.reader(io.StringIO(path.read_text()))
        matrix = np.array([[int(count) for count in row] for _, *row in rows])
        if matrix.shape != (len(names), len(names)):
            raise ValueError(f"{len(names)} names, counts {list(matrix.shape)}")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"expected {path} to have a row and a column of counts for each class, as "
            f"eval.py writes it ({error}); delete it and run eval.py"
        ) from error
    return matrix, tuple(names)


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The figure of counts int [C, C]: shares of each true class, a row each.

    Up to `NAMED` classes have their names and numbers. Colors are on a square-root
    scale, so that rare mistakes are seen.
    """
    images = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(images, 1)
    figure = Figure(figsize=(7, 7), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.sqrt(shares), cmap=style.SHARES, vmin=0, vmax=1)
    axes.set_xlabel("predicted", color=style.INK)
    axes.set_ylabel("true", color=style.INK)
    axes.tick_params(colors=style.MUTED, length=0)
    axes.spines[:].set_color(style.RULE)
    if len(class_names) > NAMED:
        return figure
    names = [short(name) for name in class_names]
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            light = shares[row, column] > 0.25
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color="white" if light else style.INK,
                fontsize=9,
            )
    return figure

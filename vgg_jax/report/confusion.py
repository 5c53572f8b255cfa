"""The confusion matrix: its CSV file and its figure."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from etils.epath import Path
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from vgg_jax.files import damaged, write_text
from vgg_jax.report.figures import INK, MUTED, RULE, shorten

SHARES = LinearSegmentedColormap.from_list(
    "shares", ["#ffffff", "#cddcf0", "#7b9cc9", "#3b5f94", "#14213d"]
)
NAMED = 20  # classes, at most, that the picture has room to name


def write_csv(path: Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes counts int [C, C]: a row for each true class, a column for each predicted.

    Args:
        path: the file.
        matrix: the counts.
        class_names: C names.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *class_names])
    for name, row in zip(class_names, matrix.tolist(), strict=True):
        writer.writerow([name, *row])
    write_text(path, text.getvalue())


def read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads (counts int [C, C], class names), as `write_csv` wrote them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another kind; the message names it.
    """
    try:
        (_, *names), *rows = csv.reader(io.StringIO(path.read_text()))
        matrix = np.array([[int(count) for count in row] for _, *row in rows])
        if matrix.shape != (len(names), len(names)):
            raise ValueError(f"{len(names)} names, counts {list(matrix.shape)}")
    except (ValueError, csv.Error) as error:
        raise damaged(path, error) from error
    return matrix, tuple(names)


def draw_confusion(
    matrix: np.ndarray, class_names: Sequence[str], side: float = 7
) -> Figure:
    """Draws counts int [C, C] as the shares of each true class, which is a row.

    Up to `NAMED` classes have their names and numbers. Colors are on a square-root
    scale, so that rare mistakes are seen.

    Args:
        matrix: the counts.
        class_names: C names.
        side: of the figure, in inches; what is written on it has the same size.
    """
    images = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(images, 1)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.sqrt(shares), cmap=SHARES, vmin=0, vmax=1)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[:].set_color(RULE)
    if len(class_names) > NAMED:
        return figure
    names = [shorten(name) for name in class_names]
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
                color="white" if light else INK,
                fontsize=9,
            )
    return figure

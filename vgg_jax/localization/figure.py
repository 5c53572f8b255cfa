"""A sheet of images with the boxes that were found in them."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vgg_jax import boxes
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import decode
from vgg_jax.localization.localize import Localizations, right_boxes
from vgg_jax.report.figures import INK, RIGHT, WRONG, save_figure

ROWS, COLUMNS = 4, 6


def draw_boxes(
    localizations: Localizations, source: Source, channels: int, output: Path
) -> None:
    """The first images of a set with their first box, and the true one: a PNG.

    Args:
        localizations: as `evaluate.dense` gives it, the likeliest class first.
        source: the images.
        channels: of the images, 1 or 3.
        output: the file to write.
    """
    figure = Figure(
        figsize=(2 * COLUMNS, 2.3 * ROWS + 0.5), dpi=120, layout="constrained"
    )
    figure.suptitle(
        "first box of each image; true boxes are dashed", color=INK, fontsize=12
    )
    right = right_boxes(localizations)[:, 0]
    shown = np.flatnonzero(localizations.weights > 0)[: ROWS * COLUMNS]
    panels = figure.subplots(ROWS, COLUMNS).flat
    for axes in panels:
        axes.set_axis_off()
    for i, axes in zip(shown, figure.axes, strict=False):
        example = source[int(i)]
        image = decode(example["image"], channels, example["name"])
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        color = RIGHT if right[i] else WRONG
        whole = boxes.window(0, 0, *image.shape[:2])
        for box, edge, dashes in (
            (localizations.targets[i], "white", "--"),
            (localizations.boxes[i, 0], color, "-"),
        ):
            x, y, width, height = boxes.seen_from(whole, box)
            # imshow has the center of the first pixel at 0.
            corner = (x - width / 2 - 0.5, y - height / 2 - 0.5)
            axes.add_patch(
                Rectangle(corner, width, height, fill=False, ec=edge, ls=dashes, lw=1.8)
            )
        name = source.class_names[localizations.classes[i, 0]]
        axes.set_title(name, color=color, fontsize=10)
    save_figure(figure, output)

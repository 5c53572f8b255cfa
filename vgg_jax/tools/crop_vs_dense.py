"""Draws where crops and the dense pass of a network differ.

  python -m vgg_jax.tools.crop_vs_dense --image FILE --output DIR

One cell of VGG's score map sees one 224x224 window of the image. Given that window as a
crop, every layer pads its border with zeros; in the dense pass it sees the neighbors
there (section 3.2). The command draws where that matters and how much, for a network
with random weights.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax import nnx
from jax import lax

from vgg_jax import cli
from vgg_jax.console import did_you_mean
from vgg_jax.inference.forward import Extras, Network, ScoreMap
from vgg_jax.models import MODELS, ConvNet, create_model, vgg
from vgg_jax.models.layers import MaxPool, output_size
from vgg_jax.models.measure import receptive_field
from vgg_jax.preprocessing import IMAGENET

PADDINGS = ("neighbors", "zero")


def window_score_map(
    model: ConvNet,
    images: jax.Array,
    *,
    window: int = 224,
    window_padding: str = "zero",
) -> jax.Array:
    """Returns class scores of every window at the network's stride (section 3.2).

    [N, H, W, in_channels] -> float32 [N, h, w, num_classes]. VGG's stride is 32 pixels.
    With "zero" the border of each window is padded with zeros in every layer: cell
    (i, j) has the scores of the crop that begins at pixel (32 i, 32 j). With
    "neighbors" it has those of the dense pass. The two are the same for a network
    without padding.

    "zero" runs the network on every window, one after another in one program. Windows
    share no work, for what the border changes reaches nearly all of the last stage: at
    384 it computes 12 times what the dense pass does.

    Args:
        model: a classifier.
        images: normalized as the model's weights expect.
        window: side of a window in pixels, as a rule the training crop.
        window_padding: one of `PADDINGS`.

    Raises:
        ValueError: the padding is unknown, or a window is larger than the images or too
            small for the network.
    """
    if window_padding not in PADDINGS:
        raise ValueError(
            f"unknown window_padding {window_padding!r}: "
            f"{did_you_mean(window_padding, PADDINGS)}"
        )
    if window > min(images.shape[1:3]):
        raise ValueError(
            f"expected images of at least the window's {window}x{window} pixels, got "
            f"{images.shape[1]}x{images.shape[2]}"
        )
    stride = receptive_field(model, window)[-1].jump
    rows, columns = ((side - window) // stride + 1 for side in images.shape[1:3])
    if window_padding == "neighbors":
        cells = output_size(model.layers, window)
        sums = lax.reduce_window(
            model.score_map(images),
            0.0,
            lax.add,
            (1, cells, cells, 1),
            (1,) * 4,
            "VALID",
        )
        return sums[:, :rows, :columns] / cells**2

    def scores(corner: jax.Array) -> jax.Array:
        size = (len(images), window, window, images.shape[-1])
        return model(lax.dynamic_slice(images, (0, corner[0], corner[1], 0), size))

    corners = stride * np.indices((rows, columns)).reshape(2, -1).T
    by_window = lax.map(scores, jnp.asarray(corners, jnp.int32))
    return by_window.reshape(rows, columns, len(images), -1).transpose(2, 0, 1, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowScores:
    """The head that gives each window's class scores, see `window_score_map`."""

    extras: ClassVar[tuple[str, ...]] = ()
    window_padding: str

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> jax.Array:
        """Scores every window: [N, H, W, C] -> [N, h, w, num_classes]."""
        return window_score_map(model, images, window_padding=self.window_padding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """The head that gives the maps of the named layers."""

    extras: ClassVar[tuple[str, ...]] = ()
    names: tuple[str, ...]

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> dict[str, jax.Array]:
        """Returns each layer's map by its name: [N, H, W, C] -> [N, h, w, features]."""
        return model.features(images, self.names)


def relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns |a - b| of each cell over the root mean square of |b| over all cells.

    [h, w, C] -> [h, w]; |x| is the length of a cell's vector.
    """
    typical_length = np.sqrt(np.mean(np.sum(np.square(b), axis=-1)))
    return np.linalg.norm(a - b, axis=-1) / typical_length


def draw_differences(model: ConvNet, name: str, image: np.ndarray, output: Path) -> str:
    """Draws two pictures of where crops and the dense pass differ.

    Returns the table of the numbers in them.

    Args:
        model: a classifier with 224x224 windows.
        name: the model's name, for the titles.
        image: uint8 [384, 384, 3].
        output: the folder that `windows.png` and `windows_stages.png` are written to.
    """
    from matplotlib.figure import Figure

    from vgg_jax.report.figures import INK, RIGHT, TRAIN, VALIDATION, save_figure
    from vgg_jax.report.heat import HEAT

    network = Network.from_model(model, IMAGENET)
    stages = tuple(
        before.name
        for before, layer in zip(model.layers, model.layers[1:], strict=False)
        if isinstance(layer, MaxPool)
    )
    pixels = image[None]
    middle = pixels[:, 64:288, 64:288]  # window (2, 2)
    dense, crops = (
        np.asarray(network.run(WindowScores(window_padding=padding), pixels)[0])
        for padding in PADDINGS
    )
    whole_maps, crop_maps = (
        jax.device_get(network.run(LayerMaps(names=stages), images))
        for images in (pixels, middle)
    )
    difference = relative_difference(dense, crops)
    first = np.asarray(network.run(ScoreMap(), pixels[:, 32:256, 64:288])).mean((1, 2))
    lines = [f"{name}, image {image.shape[0]}x{image.shape[1]}, windows of 224x224"]
    lines.append("relative difference of a window's scores, dense against crop:")
    lines += ["  " + "  ".join(f"{d:6.1%}" for d in row) for row in difference]
    exact = relative_difference(crops[1:2, 2:3], first[None])
    lines.append(f"zero padding against the crop at (32, 64): {exact.max():.1e}")

    figure = Figure(figsize=(10, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    for start, color in ((0, TRAIN), (64, VALIDATION), (160, RIGHT)):
        style = {"fill": False, "linewidth": 2.5, "edgecolor": color}
        left.add_patch(_rectangle((start - 0.5, start - 0.5), 224, 224, **style))
    left.set_title("windows (0, 0), (2, 2) and (5, 5)", color=INK, fontsize=11)
    drawn = right.imshow(100 * difference, cmap=HEAT, vmin=0)
    for (i, j), value in np.ndenumerate(difference):
        ink = "white" if value < 0.7 * difference.max() else INK
        right.text(
            j, i, f"{value:.1%}", ha="center", va="center", color=ink, fontsize=9
        )
    right.set_title(
        f"{name}: scores, dense against crop, difference %",
        color=INK,
        fontsize=11,
    )
    figure.colorbar(drawn, ax=right, shrink=0.9)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    output.mkdir(parents=True, exist_ok=True)
    save_figure(figure, output / "windows.png")

    figure = Figure(figsize=(12, 3.1), dpi=150, layout="constrained")
    lines.append("in window (2, 2), by stage: difference at the border, in the middle")
    for axes, stage in zip(figure.subplots(1, len(stages)), stages, strict=True):
        side = crop_maps[stage].shape[1]
        start = 2 * side // 7  # 64 of 224 pixels
        window = whole_maps[stage][0, start : start + side, start : start + side]
        by_cell = relative_difference(window, crop_maps[stage][0])
        drawn = axes.imshow(100 * by_cell, cmap=HEAT, vmin=0)
        figure.colorbar(drawn, ax=axes, shrink=0.75)
        axes.set_title(f"{stage}, {side} x {side}, %", color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        border = np.concatenate(
            [by_cell[0], by_cell[-1], by_cell[1:-1, 0], by_cell[1:-1, -1]]
        )
        middle_cells = slice(side // 2 - 1, side // 2 + 1)
        center = by_cell[middle_cells, middle_cells]
        lines.append(f"  {stage:8} {border.mean():6.1%} {center.mean():6.1%}")
    save_figure(figure, output / "windows_stages.png")
    return "\n".join(lines)


def _rectangle(*args: object, **options: object):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **options)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    vggs = [name for name, build in MODELS.items() if build.func is vgg]
    parser = cli.Parser("python -m vgg_jax.tools.crop_vs_dense", __doc__)
    parser.add_argument(
        "--network",
        default="vgg16",
        type=cli.one_of(vggs),
        metavar="NAME",
        help=f"one of {', '.join(vggs)}; vgg16 by default",
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="X",
        help="multiplies every hidden layer's channels; 1 by default",
    )
    parser.add_argument(
        "--image", type=cli.path, required=True, metavar="FILE", help="a picture"
    )
    parser.add_argument(
        "--output", type=cli.path, required=True, metavar="DIR", help="for the drawings"
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Draws the two pictures and prints their numbers; returns 0."""
    from vgg_jax.data.transforms import center_crop, decode, rescale

    data = values.image.read_bytes()
    image = center_crop(rescale(decode(data, 3, str(values.image)), 384), 384)
    model = create_model(
        values.network, width=values.width, init="he", rngs=nnx.Rngs(0)
    )
    print(draw_differences(model, values.network, image, values.output))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

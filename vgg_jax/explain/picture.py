"""Explains a picture by every method, and draws the maps side by side."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from etils.epath import Path
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgg_jax.console import did_you_mean
from vgg_jax.data.transforms import rescale
from vgg_jax.explain.maps import GradCam
from vgg_jax.inference.forward import Network
from vgg_jax.models.layers import Conv, FullyConnected, Layer, Relu, output_size
from vgg_jax.predict import Classifier, class_posteriors, read_pictures
from vgg_jax.report.figures import (
    INK,
    MUTED,
    RULE,
    draw_legend,
    save_figure,
    shorten,
)
from vgg_jax.report.heat import (
    HeatMap,
    enlarge,
    map_interval,
    map_side,
    occlusion_map,
    overlay,
    score_map,
)

CELLS = 4  # along a side of a map to look at; 14 of VGG-16's last one at 224 pixels
ONE_ROW = 4  # panels at most in a single row
SIDE, GAP, LINE = 3.0, 0.25, 0.3  # inches: a panel's longer side, between, a caption


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What one method says of a class in a picture.

    Args:
        title: the name of the method, with the layer that it looks at.
        note: what its map shows, in a sentence.
        heat: the map, over what the network was given.
    """

    title: str
    note: str
    heat: HeatMap


@dataclasses.dataclass(frozen=True)
class ExplainedPicture:
    """A picture, one of its classes, and where the network sees that class.

    Args:
        class_name: the name of the class.
        posterior: its probability, from 0 to 1.
        explanations: one for each method.
    """

    class_name: str
    posterior: float
    explanations: tuple[Explanation, ...]


def default_layer(layers: tuple[Layer, ...], side: int) -> str:
    """Returns the layer whose Grad-CAM is drawn where none is named.

    It is the deepest ReLU before the classifier whose map has at least `CELLS` cells a
    side, for images of so many pixels a side: a deeper layer knows more of classes, a
    finer map says better where they are.
    """
    is_head = [isinstance(row, FullyConnected) for row in layers]
    convolutions = [i for i, row in enumerate(layers) if isinstance(row, Conv)]
    end = is_head.index(True) if any(is_head) else convolutions[-1]
    trunk = [i for i in range(end) if isinstance(layers[i], Relu)]
    fine = [i for i in trunk if output_size(layers[: i + 1], side) >= CELLS]
    return layers[(fine or trunk[:1] or [0])[-1]].name


def grad_cam_heat(
    classifier: Classifier, image: np.ndarray, label: int, layer: str
) -> HeatMap:
    """Computes the Grad-CAM of a layer over an image uint8 [H, W, C].

    Raises:
        ValueError: there is no such layer, or the image is too small for the network.
    """
    network = Network.from_model(classifier.model, classifier.normalization)
    labels = {"labels": np.asarray([label], np.int32)}
    scores = np.asarray(network.run(GradCam(layer=layer), image[None], extras=labels))
    names = [row.name for row in classifier.model.layers]
    rows = classifier.model.layers[: names.index(layer) + 1]
    top, bottom = map_interval(rows, image.shape[0])
    left, right = map_interval(rows, image.shape[1])
    return HeatMap(image, scores[0], (left, right, bottom, top))


def explain_picture(
    classifier: Classifier,
    image: np.ndarray,
    *,
    class_name: str | None = None,
    layers: Sequence[str] = (),
    scale: int | None = None,
) -> ExplainedPicture:
    """Explains one class of a picture by Grad-CAM, the class score map and occlusion.

    Args:
        classifier: the network.
        image: uint8 [H, W, C] of any size.
        class_name: the name of the class; None takes the most probable one.
        layers: the layers whose Grad-CAM is computed; () takes that of `default_layer`.
        scale: the short side, in pixels, that the picture is rescaled to. None takes
            the scales of the run for the posterior, that of its heat maps for the
            gradients and the scores, and its training crop for occlusion.

    Raises:
        ValueError: there is no such class or layer, the picture is another kind of
            array, or the scale is too small for the network.
    """
    names = classifier.class_names
    if class_name is not None and class_name not in names:
        raise ValueError(f"no class {class_name!r}: {did_you_mean(class_name, names)}")
    if scale is not None:
        classifier = dataclasses.replace(classifier, scales=(scale,))
    posteriors = class_posteriors(classifier, image)
    label = int(posteriors.argmax()) if class_name is None else names.index(class_name)
    model, crop = classifier.model, classifier.crop
    side = scale or map_side(model.layers, crop) or crop
    seen = rescale(image, side)
    explanations = [
        Explanation(
            f"Grad-CAM of {layer}",
            "Grad-CAM: the layer's channels, each by how much it raises the class's "
            "score, as far as their sum is above 0.",
            grad_cam_heat(classifier, seen, label, layer),
        )
        for layer in layers or (default_layer(model.layers, side),)
    ]
    explanations.append(_explain_by_scores(classifier, seen, label))
    hidden = occlusion_map(
        model, rescale(image, scale or crop), label, crop, classifier.normalization
    )
    explanations.append(
        Explanation(
            "Occlusion",
            f"Occlusion: how far hiding a square of {hidden.square} pixels lowers the "
            "class's log-odds.",
            hidden,
        )
    )
    return ExplainedPicture(names[label], float(posteriors[label]), tuple(explanations))


def _explain_by_scores(
    classifier: Classifier, image: np.ndarray, label: int
) -> Explanation:
    """Explains by the class score map, and says how it becomes the activation map."""
    model = classifier.model
    last = [row for row in model.layers if isinstance(row, Conv)][-1]
    bias = float(getattr(model, last.name).bias[label])
    before_relu = "" if model.layers[-1] == last else " and before the ReLU"
    return Explanation(
        "Class score map",
        "Class score map: the class's score in each cell; without its bias of "
        f"{bias:.2g}{before_relu} it is the class activation map (CAM).",
        score_map(model, image, label, classifier.normalization),
    )


def draw(explained: ExplainedPicture, output: Path) -> None:
    """Draws a picture and its explanations side by side, as a PNG."""
    save_figure(explanation_figure(explained), output)


def explanation_figure(explained: ExplainedPicture) -> Figure:
    """Draws the figure of `draw`: the picture, then a panel for each explanation."""
    parts = explained.explanations
    columns = len(parts) + 1 if len(parts) < ONE_ROW else ONE_ROW - 1
    rows = -(-(len(parts) + 1) // columns)
    height, width = parts[0].heat.image.shape[:2]
    tall, wide = (SIDE * side / max(height, width) for side in (height, width))
    whole = columns * (wide + GAP) + GAP  # the figure's width
    notes = "\n".join(
        textwrap.fill(note, int(whole * 13))
        for note in dict.fromkeys(part.note for part in parts)
    )
    above, below = 0.6, 0.2 + 0.19 * (notes.count("\n") + 1)
    total = above + rows * (tall + 2 * LINE) + below
    figure = Figure(figsize=(whole, total), dpi=150)

    def add_axes(place: int) -> Axes:
        row, column = divmod(place, columns)
        left = GAP + column * (wide + GAP)
        bottom = total - above - row * (tall + 2 * LINE) - LINE - tall
        return figure.add_axes(
            (left / whole, bottom / total, wide / whole, tall / total)
        )

    picture = enlarge(parts[0].heat).image
    _draw_panel(add_axes(0), picture, "The picture", f"{width} x {height} pixels")
    for place, part in enumerate(parts, 1):
        scores = part.heat.scores
        cells = f"{scores.shape[1]} x {scores.shape[0]}"
        span = f"{scores.min():.3g} to {scores.max():.3g}"
        pixels = overlay(enlarge(part.heat))
        _draw_panel(add_axes(place), pixels, part.title, f"{cells}: {span}")
    figure.text(
        *(GAP / whole, 1 - 0.38 / total),
        f"{shorten(explained.class_name)}  {explained.posterior:.1%}",
        color=INK,
        fontsize=14,
        weight="bold",
        parse_math=False,
    )
    figure.text(
        *(GAP / whole, (below - 0.1) / total),
        notes,
        color=MUTED,
        fontsize=9,
        va="top",
        linespacing=1.4,
    )
    bar = (1 - (GAP + 1.5) / whole, 1 - 0.35 / total, 1.5 / whole, 0.12 / total)
    draw_legend(figure.add_axes(bar))
    return figure


def _draw_panel(axes: Axes, pixels: np.ndarray, title: str, caption: str) -> None:
    """Draws pixels, uint8 [H, W, 1 or 3], between a title and a caption."""
    axes.imshow(
        pixels if pixels.shape[-1] == 3 else pixels[..., 0],
        cmap="gray",
        vmin=0,
        vmax=255,
        aspect="auto",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(RULE)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=4)
    axes.set_xlabel(caption, loc="left", color=MUTED, fontsize=9, labelpad=3)


def explain_files(
    classifier: Classifier,
    files: Sequence[Path],
    output: Path,
    *,
    class_name: str | None = None,
    layers: Sequence[str] = (),
    scale: int | None = None,
) -> int:
    """Explains each picture, and draws what was found into a folder.

    Args:
        classifier: the network.
        files: the pictures.
        output: the folder for the drawings; it is made where it is missing.
        class_name, layers, scale: the arguments of `explain_picture`.

    Returns:
        How many pictures could not be read; each is named on stderr.
    """
    output.mkdir(parents=True, exist_ok=True)
    unread = 0
    for name, image in read_pictures(classifier, files):
        if image is None:
            unread += 1
            continue
        explained = explain_picture(
            classifier, image, class_name=class_name, layers=layers, scale=scale
        )
        drawing = output / f"{name.replace('/', '_')}.explain.png"
        draw(explained, drawing)
        print(f"{name}\n  {explained.posterior:7.2%}  {explained.class_name}")
        print(f"  what speaks for it: {drawing}", flush=True)
    return unread

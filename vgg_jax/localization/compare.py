"""Compares localization networks by their errors; draws a picture of their boxes."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vgg_jax import boxes, distributed
from vgg_jax.config import Config, shared_settings
from vgg_jax.console import short_names
from vgg_jax.data.sources import Source, open_source
from vgg_jax.data.transforms import decode
from vgg_jax.evaluation import protocols
from vgg_jax.evaluation.cache import data_inputs, network_inputs, shared
from vgg_jax.evaluation.predictions import Rate, top_k_error
from vgg_jax.files import resolve, write_json
from vgg_jax.localization import localize
from vgg_jax.localization.localize import (
    Localizations,
    localization_error,
    mean_box_baseline,
    right_boxes,
    select_boxes,
)
from vgg_jax.report.figures import INK, RIGHT, WRONG, save_figure
from vgg_jax.training.workdir.checkpoint import restore_model

TOP = 5  # classes, each with a box, that ILSVRC allows for an image


def run_localization(
    workdirs: Sequence[Path], classifier_dir: Path, scales: Sequence[int] = ()
) -> dict[str, Rate]:
    """Runs both testing protocols of appendix A on the test set.

    Prints the table; writes localization.json and boxes.png into the first workdir.

    Args:
        workdirs: the folders of localization networks, whose boxes are merged together.
        classifier_dir: the folder of a classifier that was trained on crops of the same
            size.
        scales: short sides Q, in pixels, in place of the first network's configuration.

    Returns:
        The errors, by name.

    Raises:
        FileNotFoundError: a workdir has no run or no checkpoint.
        ValueError: the networks do not fit one another, one is given twice, or hosts
            do not agree.
    """
    localizers, configs, steps = zip(*map(restore_model, workdirs), strict=True)
    classifier, classifier_config, classifier_step = restore_model(classifier_dir)
    config = configs[0]
    _validate_configs(
        dict(zip(workdirs, configs, strict=True)), classifier_dir, classifier_config
    )
    assert config.localization is not None  # validated just now
    scales = tuple(scales) or tuple(config.evaluation.scales)
    source = open_source(config.data, "test")
    names = short_names([resolve(workdir) for workdir in workdirs])
    distributed.agree(
        {
            name: network_inputs(model, step) | shared_settings(own)
            for name, model, step, own in zip(
                [*(f"network of {name}" for name in names), "classifier"],
                [*localizers, classifier],
                [*steps, classifier_step],
                [*configs, classifier_config],
                strict=True,
            )
        }
        | shared(data_inputs(config.data, "test", source))
        | {"Q": scales}
    )
    together = " + ".join(names)

    errors: dict[str, Rate] = {}
    for run, model, own_config in zip(names, localizers, configs, strict=True):
        name = f"{run}, center crop"
        centered = localize.center_crop_boxes(
            model, source, own_config, progress=distributed.on_first(name)
        )
        mean_box = mean_box_baseline(centered)
        errors["true class, mean box, center crop"] = localization_error(mean_box)
        errors[f"true class, {name}"] = localization_error(centered)
    predictions = protocols.evaluate(
        classifier,
        source,
        dataclasses.replace(classifier_config, data=config.data),
        protocol="dense",
        scales=scales,
        progress=distributed.on_first(f"{classifier_dir.resolve().name}, dense"),
    )
    likeliest = np.argsort(-predictions.posteriors, kind="stable")[:, :TOP]
    dense = localize.dense_boxes(
        localizers,
        classifier,
        source,
        config,
        np.column_stack([predictions.labels, likeliest]),
        scales=scales,
        merge_below=config.localization.merge_below,
        progress=distributed.on_first(f"{together}, dense"),
    )
    true_class = select_boxes(dense, slice(1))
    top_classes = select_boxes(dense, slice(1, None))
    top_class = select_boxes(top_classes, slice(1))
    errors |= {
        f"true class, {together}, dense": localization_error(true_class),
        f"top-{TOP} classes, mean box": localization_error(
            mean_box_baseline(top_classes)
        ),
        f"top-{TOP} classes, {together}, dense": localization_error(top_classes),
        f"top-1 class, {together}, dense": localization_error(top_class),
        f"top-{TOP} classes, whatever the box": top_k_error(predictions, TOP),
        "top-1 class, whatever the box": top_k_error(predictions, 1),
    }
    print(format_errors(errors, scales))
    record = {
        "scales": scales,
        "errors": {name: dataclasses.asdict(rate) for name, rate in errors.items()},
    }
    if distributed.is_first():
        write_json(workdirs[0] / "localization.json", record)
        draw_boxes(top_classes, source, config, workdirs[0] / "boxes.png")
    return errors


def format_errors(errors: Mapping[str, Rate], scales: Sequence[int]) -> str:
    """Formats the errors as a table, a line an error."""
    width = max(map(len, errors))
    images = next(iter(errors.values())).count
    lines = [
        f"{name:<{width}}  {100 * rate.value:6.2f} +- {100 * rate.half_width:.2f}"
        for name, rate in errors.items()
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join(
        [
            f"localization error %, {images:,} images; dense at short sides "
            f"{', '.join(map(str, scales))}",
            *(rule, *lines, rule),
            "+-: half of the 95% interval (Wilson)",
        ]
    )


def _validate_configs(
    localizers: Mapping[Path, Config], classifier_dir: Path, classifier: Config
) -> None:
    """Checks that the networks predict what is wanted, of the same kind of images."""
    if classifier.localization is not None:
        raise ValueError(f"expected a classifier in {classifier_dir}, got one of boxes")
    for workdir, config in localizers.items():
        if config.localization is None:
            raise ValueError(
                f"expected a network that predicts boxes in {workdir}, got a classifier"
            )
        for field in ("dataset", "crop", "mean", "std"):
            value, other = getattr(config.data, field), getattr(classifier.data, field)
            if value != other:
                raise ValueError(
                    f"{workdir} and {classifier_dir} were trained with another data."
                    f"{field}, {value!r} and {other!r}; they must be the same"
                )


ROWS, COLUMNS = 4, 6


def draw_boxes(
    localizations: Localizations, source: Source, config: Config, output: Path
) -> None:
    """Draws the first images of a set with their first box and the true one.

    Args:
        localizations: the boxes of each image, that of the likeliest class first.
        source: the images.
        config: how the images are decoded.
        output: the PNG file to write.
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
        image = decode(
            example["image"],
            config.model.in_channels,
            example["name"],
            max_pixels=config.data.max_pixels,
        )
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

"""Names the classes of pictures from anywhere, and shows where the first is seen."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from etils.epath import Path

from vgg_jax.console import short_names
from vgg_jax.data.base import CorruptImage, read_picture
from vgg_jax.data.sources import open_source
from vgg_jax.data.transforms import decode
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.files import parse_path, resolve
from vgg_jax.inference.dense import image_posteriors
from vgg_jax.inference.forward import Network
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Preprocessing
from vgg_jax.report.figures import draw_heat
from vgg_jax.report.heat import HeatMap, heat_map
from vgg_jax.training.workdir.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir.facts import read_class_names
from vgg_jax.training.workdir.weights_folder import read_facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network, with what lies between a picture and the name of a class.

    Args:
        model: the network.
        class_names: the names of its outputs, in their order.
        crop: side of its training crop, in pixels.
        normalization: what is done to pixels 0-255 before the network sees them.
        scales: short sides Q that posteriors are averaged over, in pixels.
        averaging: "score_map" or "posteriors"; see `dense_posteriors`.
        max_pixels: of a picture; a file that promises more is not decoded.
    """

    model: ConvNet
    class_names: tuple[str, ...]
    crop: int
    normalization: Preprocessing
    scales: tuple[int, ...]
    averaging: str
    max_pixels: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture, highest first.

    Args:
        classes: the names of the classes.
        posteriors: the probability of each.
        heat: the heat map of the first class.
    """

    classes: tuple[str, ...]
    posteriors: tuple[float, ...]
    heat: HeatMap


def load_run(workdir: Path | str) -> Classifier:
    """Loads the best checkpoint of a training run.

    Class names are those that the run kept; a run from before they were kept is asked
    for its data. The classes of foreign weights without names are numbered from 0.

    Raises:
        FileNotFoundError: the folder has no run or no checkpoint.
        ValueError: the checkpoint or the class names cannot be read, or the network
            predicts boxes or was trained on whitened images.
    """
    model, config, _ = restore_model(workdir)
    check_classifies(config, workdir)
    if config.data.whiten:
        raise ValueError(
            f"the network in {workdir} was trained on whitened images of "
            f"{config.data.crop}x{config.data.crop} pixels, and whitening is of images "
            "of that size alone; eval.py evaluates it on its data set"
        )
    names = read_class_names(parse_path(workdir))
    if names is None and read_facts(parse_path(workdir)) is not None:
        names = tuple(f"class {label}" for label in range(model.num_classes or 0))
    elif names is None:
        names = tuple(open_source(config.data, "test").class_names)
    if len(names) != model.num_classes:
        raise ValueError(
            f"expected the names of {model.num_classes} classes for the network in "
            f"{workdir}, got {len(names)}"
        )
    return Classifier(
        model=model,
        class_names=names,
        crop=config.data.crop,
        normalization=preprocessing_of(config.data),
        scales=tuple(config.evaluation.scales),
        averaging=config.evaluation.averaging,
        max_pixels=config.data.max_pixels,
    )


def class_posteriors(classifier: Classifier, image: np.ndarray) -> np.ndarray:
    """Returns the probability of each class: uint8 [H, W, C] -> float32 [num_classes].

    The picture may have any size (section 3.2).

    Raises:
        ValueError: as `predict`.
    """
    network = Network.from_model(classifier.model, classifier.normalization)
    posteriors = np.asarray(
        image_posteriors(
            network, image, classifier.scales, averaging=classifier.averaging
        )
    )
    if not np.isfinite(posteriors).all():
        raise ValueError(
            "the network's scores of this picture are not finite numbers; its weights "
            "are damaged or its training diverged: use another checkpoint"
        )
    return posteriors


def predict(classifier: Classifier, image: np.ndarray, *, top: int = 5) -> Prediction:
    """Returns the `top` most probable classes of a picture, by dense evaluation.

    The picture, uint8 [H, W, C], may have any size (section 3.2). The heat map is of
    the whole picture, near the scale of training.

    Raises:
        ValueError: `top` is under 1, the picture is another kind of array, a scale is
            too small for the network, or the network's scores are not finite.
    """
    if top < 1:
        raise ValueError(f"expected top to be at least 1 class, got {top}")
    posteriors = class_posteriors(classifier, image)
    labels = np.argsort(-posteriors, kind="stable")[:top]
    return Prediction(
        classes=tuple(classifier.class_names[label] for label in labels),
        posteriors=tuple(posteriors[labels].tolist()),
        heat=heat_map(
            classifier.model,
            image,
            int(labels[0]),
            classifier.crop,
            classifier.normalization,
        ),
    )


def read_pictures(
    classifier: Classifier, files: Sequence[Path]
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Gives the short name and the pixels, uint8 [H, W, C], of each picture once.

    A picture that cannot be read is named on stderr, and None stands for its pixels.
    """
    files = list(dict.fromkeys(resolve(path) for path in files))
    for path, name in zip(files, short_names(files), strict=True):
        try:
            image = decode(
                read_picture(path),
                classifier.model.in_channels,
                str(path),
                max_pixels=classifier.max_pixels,
            )
        except (OSError, CorruptImage) as error:
            print(f"error: {error}", file=sys.stderr)
            yield name, None
            continue
        yield name, image


def predict_files(
    classifier: Classifier, files: Sequence[Path], output: Path, *, top: int = 5
) -> int:
    """Prints the classes of each picture and draws its heat map into a folder.

    Args:
        classifier: the network.
        files: the pictures.
        output: the folder for the heat maps; it is made where it is missing.
        top: how many classes to print.

    Returns:
        How many pictures could not be read; each is named on stderr.
    """
    output.mkdir(parents=True, exist_ok=True)
    unread = 0
    for name, image in read_pictures(classifier, files):
        if image is None:
            unread += 1
            continue
        prediction = predict(classifier, image, top=top)
        classes = list(zip(prediction.classes, prediction.posteriors, strict=True))
        picture = output / f"{name.replace('/', '_')}.heat.png"
        draw_heat(prediction.heat, classifier.crop, *classes[0], picture)
        print(name)
        for class_name, posterior in classes:
            print(f"  {posterior:7.2%}  {class_name}")
        print(f"  where it sees {classes[0][0]}: {picture}", flush=True)
    return unread

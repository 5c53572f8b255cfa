"""The classes of pictures from anywhere, and where in each the first one is seen."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgg_jax.console import short_names
from vgg_jax.data.sources import open_source
from vgg_jax.data.transforms import CorruptImage, decode
from vgg_jax.inference.dense import dense_posteriors
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization
from vgg_jax.report.figures import draw_heat
from vgg_jax.report.heat import ScoreMap, heat_map
from vgg_jax.training.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir import read_class_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network, with what lies between a picture and the name of a class.

    Args:
        model: the network.
        class_names: of its outputs.
        crop: side of its training crop, in pixels.
        mean: subtracted from pixels 0-255, one value a channel.
        std: divides them after that.
        scales: short sides Q that posteriors are averaged over.
        averaging: "score_map" or "posteriors"; see `dense_posteriors`.
    """

    model: ConvNet
    class_names: tuple[str, ...]
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scales: tuple[int, ...]
    averaging: str


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture, highest first.

    Args:
        classes: their names.
        posteriors: of each.
        heat: the heat map of the first.
    """

    classes: tuple[str, ...]
    posteriors: tuple[float, ...]
    heat: ScoreMap


def load_run(workdir: Path | str) -> Classifier:
    """The best checkpoint of a training run.

    Class names are those that the run kept. One from before they were kept needs its
    data.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        ValueError: a checkpoint or class names that cannot be read, or a network that
            predicts boxes or wants whitened images.
    """
    model, config, _ = restore_model(workdir)
    check_classifies(config, workdir)
    if config.data.whiten:
        raise ValueError(
            f"the network in {workdir} was trained on whitened images of "
            f"{config.data.crop}x{config.data.crop} pixels, and whitening is of images "
            "of that size alone; eval.py evaluates it on its data set"
        )
    names = read_class_names(Path(workdir))
    if names is None:
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
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        scales=tuple(config.evaluation.scales),
        averaging=config.evaluation.averaging,
    )


def predict(classifier: Classifier, image: np.ndarray, *, top: int = 5) -> Prediction:
    """Dense evaluation of one picture of any size (section 3.2): uint8 [H, W, C].

    The heat map is of the whole picture, near the scale of training.

    Raises:
        ValueError: another kind of array, or a scale too small for the network.
    """
    of = classifier
    found = np.asarray(
        dense_posteriors(
            of.model,
            image,
            of.scales,
            mean=of.mean,
            std=of.std,
            averaging=of.averaging,
        )
    )
    best = np.argsort(-found, kind="stable")[:top]
    return Prediction(
        classes=tuple(of.class_names[label] for label in best),
        posteriors=tuple(found[best].tolist()),
        heat=heat_map(
            of.model,
            image,
            int(best[0]),
            of.crop,
            Normalization(of.mean, of.std),
        ),
    )


def predict_files(
    classifier: Classifier, files: Sequence[Path], output: Path, *, top: int = 5
) -> int:
    """Prints the classes of each picture and draws its heat map into a folder.

    Args:
        classifier: the network.
        files: the pictures.
        output: the folder; it is made where it is missing.
        top: how many classes to print.

    Returns:
        How many could not be read; each is named on stderr.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = list(dict.fromkeys(path.resolve() for path in files))
    unread = 0
    for path, name in zip(files, short_names(files), strict=True):
        try:
            image = decode(path.read_bytes(), classifier.model.in_channels, str(path))
        except (OSError, CorruptImage) as error:
            print(f"error: {error}", file=sys.stderr)
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

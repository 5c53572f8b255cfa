"""The classes of pictures from anywhere, and where in each the first one is seen."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vgg_jax.console import short_names
from vgg_jax.data.sources import open_source
from vgg_jax.data.transforms import CorruptImage, decode, rescale
from vgg_jax.files import replacing
from vgg_jax.inference.dense import dense_posteriors
from vgg_jax.models import ConvNet
from vgg_jax.report.heat import ScoreMap, map_side, overlay, score_map
from vgg_jax.training.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir import read_class_names

SHOWN = 224  # pixels; a heat map's file has at least such a short side


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
        heat: the score map of the first.
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
            predicts boxes.
    """
    model, config, _ = restore_model(workdir)
    check_classifies(config, workdir)
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

    The heat map is of the whole picture, enlarged until it has enough cells to look at.

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
    enlarged = rescale(image, map_side(of.model.layers, of.crop))
    return Prediction(
        classes=tuple(of.class_names[label] for label in best),
        posteriors=tuple(found[best].tolist()),
        heat=score_map(of.model, enlarged, int(best[0]), of.mean, of.std),
    )


def predict_files(
    classifier: Classifier, files: Sequence[Path], output: Path, *, top: int = 5
) -> int:
    """Print the classes of each picture, write its heat map into the folder `output`.

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
        found = predict(classifier, image, top=top)
        drawn = overlay(found.heat)
        if min(drawn.shape[:2]) < SHOWN:
            drawn = rescale(drawn, SHOWN)
        picture = output / f"{name.replace('/', '_')}.heat.png"
        with replacing(picture) as partial:
            png = cv2.imencode(".png", drawn[..., ::-1])[1]
            partial.write_bytes(png.tobytes())
        print(name)
        for class_name, posterior in zip(found.classes, found.posteriors, strict=True):
            print(f"  {posterior:7.2%}  {class_name}")
        print(f"  where it sees {found.classes[0]}: {picture}", flush=True)
    return unread

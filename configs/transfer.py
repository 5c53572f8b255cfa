"""Trains a classifier of one's own pictures, a folder for each class.

  python train.py --config configs/transfer.py --config.data.data_dir=PICTURES \\
      [--config.init_from=FILE_OR_NAME]

From weights of a VGG (a file that `vgg_jax.load_weights` reads, a name such as
torchvision/vgg16, or a run) only a new last layer learns; what the others make of each
picture is computed once. Without weights a small network learns all of its layers. The
command ends with the test errors and a page, report.html in the workdir. What depends
on how many pictures there are is decided below, and printed. Not run on pictures that
all have; docs/transfer.md has a benchmark.
"""

import re
from pathlib import Path

from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.data.folder import list_classes
from vgg_jax.files import parse_path
from vgg_jax.models import MODELS
from vgg_jax.training.workdir.facts import read_config
from vgg_jax.weights.folders import is_run
from vgg_jax.weights.published import PUBLISHED

HELD_OUT_PER_CLASS = 5  # validation images that a class should have
# The error of fewer validation images than this takes few values: their loss chooses
# the best checkpoint in its place.
ENOUGH_FOR_AN_ERROR = 200
STEPS = 1500  # of a training from random weights, at least


def get_config(data_dir: str = "", init_from: str = "") -> Config:
    """Makes the configuration for the pictures and the weights of the command line."""
    images, classes = count_pictures(data_dir)
    fraction = min(0.25, max(0.1, HELD_OUT_PER_CLASS * classes / max(images, 1)))
    held_out = round(fraction * images)
    metric = "top1_error" if held_out >= ENOUGH_FOR_AN_ERROR else "loss"
    batch_size = 32 if images < 5000 else 128
    start = from_weights if init_from else from_nothing
    config = start(init_from, images, batch_size)
    config.data.validation_fraction = fraction
    config.optimizer.metric = metric
    if images:
        network = config.model
        print(
            f"{images:,} pictures of {classes} classes: about {held_out:,} are held "
            f"out for validation, whose {metric} chooses the best checkpoint; they do "
            f"not set the rate, which falls along a cosine. {network.name} of width "
            f"{network.width:g}; where no flag says otherwise {config.num_epochs:g} "
            f"epochs, batches of {batch_size}"
            + ("" if init_from else "; --config.init_from=FILE starts from weights"),
            flush=True,
        )
    return config


def count_pictures(data_dir: str) -> tuple[int, int]:
    """Counts the pictures to train on and the classes; (0, 0) where there are none."""
    root = Path(data_dir or "/nonexistent").expanduser()
    root = root / "train" if (root / "train").is_dir() else root
    try:
        pictures = list_classes(root)
    except (OSError, ValueError):
        return 0, 0  # training says what is wrong with the folder
    return sum(map(len, pictures.values())), len(pictures)


def from_weights(init_from: str, images: int, batch_size: int) -> Config:
    """Trains the last layer of VGG-16, or of the network that the weights are named."""
    side = 224
    name, width = network_of(init_from)
    return Config(
        model=VGGConfig(
            name=name,
            width=width,
            num_classes=None,
            head="global_pool",
            dropout=0.5,
        ),
        data=DataConfig(dataset="folder", crop=side, scale_min=side, scale_max=side),
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            schedule="cosine",
            trained_layers=("fc8",),
            keep_maps=True,
        ),
        evaluation=EvaluationConfig(center_scale=side, scales=(side,), batch_size=16),
        batch_size=batch_size,
        num_epochs=30,
        init_from=init_from,
        report=True,
    )


def network_of(init_from: str) -> tuple[str, float]:
    """Returns the name and the width of the VGG whose weights are named.

    A run, also one in runs/, has its own. Weights are those of the network that they
    are named after, as in vgg19-dcbb9e9d.pth, or of VGG-16 where the name tells none.
    """
    for folder in (parse_path(init_from), parse_path("runs") / init_from):
        if is_run(folder):
            network = read_config(folder).model
            if isinstance(network, VGGConfig):
                return network.name, network.width
    name = Path(init_from).stem
    if init_from in PUBLISHED:
        name = PUBLISHED[init_from].network
    named = [n for n in MODELS if n[:3] == "vgg" and re.match(rf"{n}(\b|_)", name)]
    return max(named, key=len, default="vgg16"), 1.0


def from_nothing(init_from: str, images: int, batch_size: int) -> Config:
    """Trains all of a batch-normalized VGG-11 of a quarter of the width."""
    epochs = max(30, STEPS * batch_size // max(images, 1))
    return Config(
        model=VGGConfig(
            name="vgg11_bn",
            num_classes=None,
            width=0.25,
            head="global_pool",
            dropout=0.2,
            init="he",
        ),
        data=DataConfig(
            dataset="folder",
            crop=64,
            scale_min=64,
            scale_max=80,
            std=(58.4, 57.1, 57.4),
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.05, schedule="cosine", warmup_epochs=1
        ),
        evaluation=EvaluationConfig(center_scale=72, scales=(72,)),
        batch_size=batch_size,
        num_epochs=min(epochs, 200),
        validate_every_epochs=5,
        report=True,
    )

"""Trains a linear SVM on the descriptors of a folder of pictures (appendix B).

  python -m vgg_jax.features.svm --workdir DIR --data_dir PICTURES

The network of the run in the workdir is not trained further. Its descriptors are kept
in DIR/descriptors; C is chosen on validation images held out of the training ones.
Prints a classification report of the test images and writes it to DIR/svm.json.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from vgg_jax import cli, distributed
from vgg_jax.config import Config, shared_settings
from vgg_jax.data.folder import open_folder
from vgg_jax.data.mirror import local_data
from vgg_jax.evaluation.cache import data_inputs, network_inputs, shared
from vgg_jax.evaluation.predictions import wilson
from vgg_jax.features.collection import collect_activations
from vgg_jax.features.descriptors import AGGREGATES, combine_scales, validate_request
from vgg_jax.files import write_json
from vgg_jax.training.workdir.checkpoint import restore_model
from vgg_jax.training.workdir.weights_folder import folders_of

COSTS = tuple(4.0**power for power in range(-4, 6))  # values of the SVM's C to try
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the command is asked to do.

    Args:
        workdir: the folder of the network's run.
        data_dir: the folder of the pictures.
        scales: short sides Q in pixels; () takes those of the run's configuration.
        aggregate: how scales are combined, one of `AGGREGATES`.
        layer: the name of the layer whose activations are taken.
        validation_fraction: the part of the training pictures that C is chosen on.
    """

    workdir: Path
    data_dir: str
    scales: tuple[int, ...]
    aggregate: str
    layer: str
    validation_fraction: float


def run_svm(request: Request) -> dict[str, Any]:
    """Trains a linear SVM, each class against the rest, and tests it.

    Prints the report, writes it to svm.json in the network's workdir, and returns it.

    Raises:
        FileNotFoundError: there is no run, or there are no pictures.
        ImportError: scikit-learn is not installed.
        ValueError: settings do not fit the network or the pictures, or hosts do not
            agree.
    """
    try:
        from sklearn.metrics import balanced_accuracy_score, classification_report
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError(
            "the SVM is scikit-learn's, which is not installed; type "
            "`pip install -r requirements-svm.txt`"
        ) from error
    model, trained_with, step = restore_model(request.workdir)
    scales = request.scales or tuple(trained_with.evaluation.scales)
    validate_request(model, scales, request.aggregate, request.layer)
    config = _with_folder(trained_with, request)
    data_dir = str(local_data(config.data))
    sources = {
        split: open_folder(data_dir, split, request.validation_fraction)
        for split in SPLITS
    }
    if len(classes := sources["train"].class_names) < 2:
        raise ValueError(
            f"{data_dir}: expected the folders of two classes or more to tell apart, "
            f"found {', '.join(classes)} alone"
        )
    distributed.agree(
        network_inputs(model, step)
        | shared_settings(config)
        | {"Q": scales, "layer": request.layer, "aggregate": request.aggregate}
        | {
            f"images of {split}": shared(data_inputs(config.data, split, source))
            for split, source in sources.items()
        }
    )
    examples = {}  # descriptors and labels of each split
    for split, source in sources.items():
        activations, labels = collect_activations(
            model,
            source,
            config,
            workdir=request.workdir,
            step=step,
            scales=scales,
            layer=request.layer,
            progress=distributed.on_first(f"descriptors of {split}"),
        )
        descriptors = np.asarray(combine_scales(activations, request.aggregate))
        examples[split] = descriptors, labels

    def fit(cost: float, *splits: str) -> Any:
        descriptors, labels = map(
            np.concatenate, zip(*(examples[split] for split in splits), strict=True)
        )
        return LinearSVC(C=cost, random_state=0).fit(descriptors, labels)

    accuracies = {}
    for cost in COSTS:
        accuracies[cost] = fit(cost, "train").score(*examples["validation"])
        print(f"C={cost:g}: {accuracies[cost]:.2%} of validation right", flush=True)
    best = max(COSTS, key=accuracies.__getitem__)  # the smallest of equals
    descriptors, labels = examples["test"]
    predicted = fit(best, "train", "validation").predict(descriptors)
    names = list(sources["test"].class_names)
    answers = (labels, predicted)
    table = {"labels": range(len(names)), "target_names": names, "zero_division": 0.0}
    accuracy = wilson(int(np.sum(predicted == labels)), len(labels))
    recall = balanced_accuracy_score(*answers)
    print(
        f"C={best:g}, {len(labels):,} test images\n"
        f"{classification_report(*answers, digits=4, **table)}\n"
        f"accuracy {accuracy.value:.2%} +- {accuracy.half_width:.2%} (95%, Wilson), "
        f"mean class recall {recall:.2%}"
    )
    report = {
        **dataclasses.asdict(request),
        "workdir": str(request.workdir),
        "step": step,
        "scales": scales,
        "images": {split: len(labels) for split, (_, labels) in examples.items()},
        "C": best,
        "validation_accuracy": {f"{cost:g}": accuracies[cost] for cost in COSTS},
        "accuracy": dataclasses.asdict(accuracy),
        "mean_class_recall": recall,
        "classes": classification_report(*answers, output_dict=True, **table),
    }
    path = request.workdir / "svm.json"
    if distributed.is_first():
        write_json(path, report)
    print(f"written to {path}")
    return report


def _with_folder(config: Config, request: Request) -> Config:
    """Returns the network's configuration with the folder of pictures as its data."""
    data = dataclasses.replace(
        config.data,
        dataset="folder",
        data_dir=request.data_dir,
        on_corrupt_image="skip",
    )
    return dataclasses.replace(config, data=data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.features.svm", __doc__)
    parser.add_workdir(
        "folder of the run whose network describes the pictures", or_weights=True
    )
    parser.add_argument(
        "--data_dir",
        type=cli.path,
        required=True,
        metavar="DIR",
        help="pictures, a folder a class; or train/ and test/ with a folder a class",
    )
    parser.add_scales("those of the run's configuration by default")
    parser.add_argument(
        "--aggregate",
        type=cli.one_of(AGGREGATES),
        default="mean",
        metavar="NAME",
        help=f"how scales are combined: {' or '.join(AGGREGATES)}; mean by default",
    )
    parser.add_argument(
        "--layer", default="relu7", help="whose activations are taken; relu7 by default"
    )
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="part of the training pictures that C is chosen on; 0.1 by default",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Trains and tests the SVM of the command line; returns 0."""
    (workdir,) = folders_of(values)
    names = [field.name for field in dataclasses.fields(Request)]
    options = {name: getattr(values, name) for name in names}
    options |= {"data_dir": str(values.data_dir), "workdir": workdir}
    run_svm(Request(**options))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

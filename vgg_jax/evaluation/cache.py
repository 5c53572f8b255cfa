"""Keeps posteriors on disk, so that fusing and combining need no second pass.

`WORKDIR/predictions/PROTOCOL_qSCALE_AVERAGING.npz` holds `posteriors`, `labels` and
`weights` as in `Predictions`, and `inputs`: JSON of all that they depend on.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils.epath import Path

from vgg_jax.config import Config, DataConfig, differences
from vgg_jax.data.base import Source, sample_digest
from vgg_jax.data.zca import whitening_digest
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.protocols import Pass
from vgg_jax.files import load_arrays, parse_path, resolve, save_arrays
from vgg_jax.models import ConvNet
from vgg_jax.training.steps import split

# To be raised when the same inputs begin to give other posteriors.
VERSION = 2

Inputs = dict[str, Any]  # as JSON can hold them


class Unusable(ValueError):
    """Raised for kept posteriors that must not be used; the message says why."""


def cache_path(workdir: Path, one_pass: Pass, averaging: str) -> Path:
    """Returns the file that keeps a network's posteriors of one pass."""
    name = f"{one_pass.protocol}_q{one_pass.scale}_{averaging}.npz"
    return workdir / "predictions" / name


def network_inputs(model: ConvNet, step: int) -> Inputs:
    """Describes a network by its step and a digest of its layers and weights."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((model.layers, model.dtype)).encode())
    for path, array in jax.tree.leaves_with_path(split(model)[1:]):
        values = np.ascontiguousarray(array)
        digest.update(repr((path, values.shape, values.dtype)).encode())
        digest.update(values.tobytes())
    return {"step": step, "network": digest.hexdigest()}


def data_folder(config: DataConfig) -> str:
    """Returns the folder of a data set, as a whole path."""
    return str(resolve(parse_path(config.data_dir)))


def data_inputs(config: DataConfig, split: str, source: Source) -> Inputs:
    """Describes a set of images: its folder, size, classes and `sample_digest`."""
    return {
        "dataset": config.dataset,
        "data_dir": data_folder(config),
        "split": split,
        "images": len(source),
        "class_names": list(source.class_names),
        "sample": sample_digest(source),
        "on_corrupt_image": config.on_corrupt_image,
        "max_pixels": config.max_pixels,
    }


def shared(inputs: Inputs) -> Inputs:
    """Returns what several hosts must have alike; each may keep images elsewhere."""
    return {name: value for name, value in inputs.items() if name != "data_dir"}


def all_inputs(network: Inputs, data: Inputs, config: Config, one_pass: Pass) -> Inputs:
    """Returns all that the posteriors of one pass depend on, but for rounding."""
    return {
        "version": VERSION,
        **network,
        **data,
        "protocol": one_pass.protocol,
        "scale": one_pass.scale,
        "averaging": config.evaluation.averaging,
        "crop": config.data.crop,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "whitening": whitening_digest(config.data),
    }


def save(path: Path, inputs: Inputs, predictions: Predictions) -> None:
    """Writes posteriors to a file, in place of those that were kept there before.

    Raises:
        FileNotFoundError: the folder of the run has vanished; it is not made anew.
    """
    path.parent.mkdir(exist_ok=True)
    save_arrays(
        path,
        vars(predictions) | {"inputs": np.array(json.dumps(inputs))},
    )


def load(path: Path, inputs: Inputs) -> Predictions:
    """Reads the posteriors that were kept for these inputs.

    Raises:
        FileNotFoundError: no posteriors were kept.
        Unusable: the posteriors are of other inputs, or the file is damaged.
    """
    fields = [field.name for field in dataclasses.fields(Predictions)]
    try:
        stored = load_arrays(path, (*fields, "inputs"))
        kept_inputs = json.loads(str(stored.pop("inputs")))
    except ValueError as error:
        raise Unusable(f"it is damaged ({error.__cause__ or error})") from error
    if not isinstance(kept_inputs, dict):
        raise Unusable("it is damaged (its inputs have no names)")
    predictions = Predictions(**stored)
    changed = [field for field, _, _ in differences(inputs, kept_inputs)]
    if changed:
        raise Unusable(f"it is of another {', '.join(changed)}")
    _validate_arrays(predictions, inputs["images"], len(inputs["class_names"]))
    return predictions


def _validate_arrays(predictions: Predictions, images: int, classes: int) -> None:
    """Checks shapes, types and ranges of posteriors that were kept.

    Raises:
        Unusable: they cannot be those of so many images and classes.
    """
    expected = {
        "posteriors": ((images, classes), np.float32),
        "labels": ((images,), np.int32),
        "weights": ((images,), np.float32),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(predictions, name)
        if array.shape != shape or array.dtype != dtype:
            raise Unusable(
                f"it is damaged (expected {name} {np.dtype(dtype)} {list(shape)}, got "
                f"{array.dtype} {list(array.shape)})"
            )
    labels, weights = predictions.labels, predictions.weights
    is_right = {
        "posteriors": np.isfinite(predictions.posteriors).all(),
        "labels": ((labels >= 0) & (labels < classes)).all(),
        "weights": np.isin(weights, (0, 1)).all(),
    }
    for name, is_so in is_right.items():
        if not is_so:
            raise Unusable(f"it is damaged (its {name} are out of range)")

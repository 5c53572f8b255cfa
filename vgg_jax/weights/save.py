"""This module writes a network's weights as others read them.

The network takes RGB whatever its weights' first file did; so do the files, unless
`channels` says "BGR".
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flax import nnx

from vgg_jax import files
from vgg_jax.console import did_you_mean
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import BatchNorm, Conv, FullyConnected, Layer
from vgg_jax.preprocessing import Normalization
from vgg_jax.version import __version__
from vgg_jax.weights.contents import VARIABLES
from vgg_jax.weights.fetch import EXTRA
from vgg_jax.weights.lineage import exchange_red_and_blue, validate_channels
from vgg_jax.weights.load import Loaded
from vgg_jax.weights.naming import NAMINGS
from vgg_jax.weights.published import PUBLISHED, file_digest

SAFETENSORS, KERAS = ".safetensors", ".weights.h5"

# What PyTorch calls the variables of a layer.
_TORCH = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# The names of a safetensors file, and which layers are matrices under them.
NAMES: Mapping[str, Callable[[Layer], bool]] = {
    "torchvision": lambda row: isinstance(row, FullyConnected),
    "timm": lambda row: row.name == "fc8",
    "vgg_jax": lambda row: False,
}


def save_weights(
    model: ConvNet,
    path: str | os.PathLike[str],
    *,
    names: str = "timm",
    loaded: Loaded | None = None,
    normalization: Normalization | None = None,
    class_names: Sequence[str] | None = None,
    channels: str = "RGB",
) -> None:
    """Writes the weights of a network, whole or not at all.

    A path that ends in .safetensors gets what PyTorch, timm and torchvision read, one
    in .weights.h5 what Keras 3 reads into `keras.applications.VGG16` and into any model
    with the same layers. Their metadata say whose weights they are, what images they
    want, the names of the classes, and the digest of the file that they came from.

    Args:
        model: the network.
        path: the file.
        names: whose names a safetensors file has: "timm", "torchvision" or "vgg_jax".
        loaded: what `load_weights` gave for this network, if its weights are others'.
        normalization: what is to be done to RGB pixels 0-255; that of `loaded` by
            default.
        class_names: the names of the classes; by default those of `loaded`, where they
            are as many as the network has.
        channels: the order of the color channels that the file's network takes, "RGB"
            or "BGR".

    Raises:
        ImportError: the library that writes the format is missing.
        OSError: the file cannot be written.
        ValueError: another ending, unknown names or channels, another number of
            classes, or layers that other modules compute.
    """
    place = files.parse_path(path)
    validate_channels(channels)
    model.refuse_replaced("a file of weights")
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(
            f"expected the names of {model.num_classes} classes, got {len(class_names)}"
        )
    metadata = _metadata(model, loaded, normalization, class_names, channels)
    variables = _variables(model)
    if channels == "BGR":
        first = next(row.name for row in model.layers if isinstance(row, Conv))
        kernel = variables[first]["kernel"]
        variables[first]["kernel"] = exchange_red_and_blue(kernel, 2)
    is_safetensors = place.name.endswith(SAFETENSORS)
    if is_safetensors and names not in NAMES:
        raise ValueError(f"unknown names {names!r}: {did_you_mean(names, NAMES)}")
    if not is_safetensors and not place.name.endswith(KERAS):
        raise ValueError(
            f"{place}: expected a name that ends in {SAFETENSORS} or {KERAS}, which "
            "says the format"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_safetensors:
        _write_safetensors(place, _in_torch(model.layers, variables, names), metadata)
    else:
        _write_keras(place, model.layers, variables, metadata)


def arrays_in_torch(model: ConvNet, names: str) -> dict[str, np.ndarray]:
    """Returns a network's weights under the names, and with the axes, of PyTorch.

    Args:
        model: the network.
        names: whose names they have, a key of `NAMES`.
    """
    return _in_torch(model.layers, _variables(model), names)


def _metadata(
    model: ConvNet,
    loaded: Loaded | None,
    normalization: Normalization | None,
    class_names: Sequence[str] | None,
    channels: str,
) -> dict[str, str]:
    """Returns what a file tells besides the weights."""
    metadata = {"format": "pt", "vgg_jax": __version__, "channels": channels}
    if loaded is not None:
        row = PUBLISHED.get(loaded.source)
        metadata["source"] = loaded.source
        if loaded.path is not None and files.parse_path(loaded.path).exists():
            metadata["source_sha256"] = file_digest(files.parse_path(loaded.path))
        if loaded.lineage is not None:
            metadata["lineage"] = loaded.lineage
        if row is not None and row.license is not None:
            metadata["license"] = row.license
        normalization = normalization or loaded.normalization
        if class_names is None and len(loaded.class_names or ()) == model.num_classes:
            class_names = loaded.class_names
    if normalization is not None:
        metadata["normalization"] = json.dumps(dataclasses.asdict(normalization))
    if class_names is not None:
        metadata["class_names"] = json.dumps(list(class_names))
    return metadata


def _variables(model: ConvNet) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of each row that has some, in this library's axes."""
    variables: dict[str, dict[str, np.ndarray]] = {}
    for row in model.layers:
        if isinstance(row, Conv | BatchNorm):
            state = nnx.state(getattr(model, row.name), (nnx.Param, nnx.BatchStat))
            arrays = nnx.to_pure_dict(state)
            variables[row.name] = {
                name: np.asarray(arrays[name]) for name in VARIABLES if name in arrays
            }
    return variables


def _in_torch(
    layers: Sequence[Layer],
    variables: Mapping[str, Mapping[str, np.ndarray]],
    names: str,
) -> dict[str, np.ndarray]:
    """Returns the arrays under others' names, with the axes that PyTorch has."""
    prefixes = NAMINGS[names](layers)
    arrays: dict[str, np.ndarray] = {}
    for row in layers:
        for name, array in variables.get(row.name, {}).items():
            if name == "kernel":
                array = array.transpose(3, 2, 0, 1)
                if NAMES[names](row):
                    array = array.reshape(len(array), -1)
            key = f"{prefixes[row.name]}.{_TORCH[name]}"
            arrays[key] = np.ascontiguousarray(array)
        if isinstance(row, BatchNorm):
            arrays[f"{prefixes[row.name]}.num_batches_tracked"] = np.array(0, np.int64)
    return arrays


def _write_safetensors(
    place: files.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes named arrays as safetensors."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"writing {place} needs {error.name}: {EXTRA}") from error
    with files.replacing(place) as partial:
        save_file(arrays, partial, metadata)


def _write_keras(
    place: files.Path,
    layers: Sequence[Layer],
    variables: Mapping[str, Mapping[str, np.ndarray]],
    metadata: dict[str, str],
) -> None:
    """Writes arrays as Keras 3 has them in a functional model.

    A layer is named by its class and its number among those of the class; its own name
    is an attribute that Keras does not compare.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"writing {place} needs {error.name}: {EXTRA}") from error
    groups, own_names = NAMINGS["keras_counted"](layers), NAMINGS["keras"](layers)
    with files.replacing(place) as partial, h5py.File(partial, "w") as file:
        file.attrs["vgg_jax"] = json.dumps(metadata)
        for row in layers:
            if row.name not in variables:
                continue
            group = file.create_group(f"layers/{groups[row.name]}/vars")
            group.attrs["name"] = own_names[row.name]
            for i, (name, array) in enumerate(_in_keras_order(variables[row.name])):
                if name == "kernel" and isinstance(row, FullyConnected):
                    array = array.reshape(-1, array.shape[-1])
                group.create_dataset(str(i), data=array)


def _in_keras_order(
    arrays: Mapping[str, np.ndarray],
) -> list[tuple[str, np.ndarray]]:
    """Orders a layer's arrays as Keras does: the kernel or the scale, then the bias."""
    order = ("kernel", "scale", "bias", "mean", "var")
    return [(name, arrays[name]) for name in order if name in arrays]

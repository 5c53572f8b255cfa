"""This module reads MatConvNet's files, of the generations before and after `meta`."""

import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import HWIO, Contents, Layers
from vgg_jax.weights.readers import matlab
from vgg_jax.weights.readers.mapped import (
    Refusal,
    map_file,
    naming_damage,
    view_of,
)
from vgg_jax.weights.readers.matlab import Value


def read(path: Path) -> Contents:
    """Reads a `.mat` file of a network of the kind that MatConvNet calls SimpleNN.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    view = view_of(map_file(path))
    with naming_damage(path):
        if bytes(view[:10]) == b"MATLAB 7.3":
            raise Refusal(
                "expected a file of MATLAB's version 5, got one of version 7.3; in "
                "MATLAB, net = load(NAME); save(NAME, '-struct', 'net', '-v7')"
            )
        variables = matlab.load(view)
        network = variables.get("net", variables)
        rows = _field(network, "layers")
        if not isinstance(rows, list):
            raise Refusal(
                "expected a cell array named layers, as MatConvNet's SimpleNN has, got "
                f"the variables {', '.join(variables) or 'none'}"
            )
        layers: Layers = {}
        for i, row in enumerate(rows, 1):
            name = _field(row, "name")
            if not isinstance(name, str):
                name = f"layer {i}"
            arrays = _arrays(row)
            if not arrays:
                continue
            if _field(row, "type") != "conv":
                raise Refusal(
                    f"expected weights in convolutions alone, got {name} of the type "
                    f"{_field(row, 'type')!r}"
                )
            layers[name] = _convolution(*arrays)
        if not layers:
            raise Refusal("expected convolutions with weights, got none")
        # Today's files keep these in `meta`, older ones beside the layers.
        facts = _field(network, "meta") or network
        mean = _mean(_field(_field(facts, "normalization"), "averageImage"))
        names = _field(_field(facts, "classes"), "description")
    return Contents(
        format="matconvnet",
        layers=layers,
        axes=HWIO,
        mean=mean,
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _field(structure: Value, name: str) -> Value:
    """Returns a field; None where there is no such field or structure."""
    return structure.get(name) if isinstance(structure, dict) else None


def _arrays(row: Value) -> list[np.ndarray]:
    """Returns a layer's filters and biases, of either generation."""
    weights = _field(row, "weights")
    if not isinstance(weights, list):
        weights = [_field(row, "filters"), _field(row, "biases")]
    return [array for array in weights if isinstance(array, np.ndarray) and array.size]


def _convolution(filters: np.ndarray, *biases: np.ndarray) -> dict[str, np.ndarray]:
    # MATLAB drops last axes of size one.
    shape = filters.shape + (1,) * (4 - filters.ndim)
    arrays = (filters.reshape(shape), *(array.reshape(-1) for array in biases))
    return dict(zip(("kernel", "bias"), arrays, strict=False))


def _mean(image: Value) -> tuple[float, ...] | None:
    """Averages [h, w, 3] or, of gray images, [h, w]; takes a row of values as it is."""
    if not isinstance(image, np.ndarray) or image.size == 0:
        return None
    channels = image.size if 1 in image.shape else 1
    pixels = image.reshape(-1, image.shape[-1] if image.ndim == 3 else channels)
    return tuple(pixels.mean(axis=0, dtype=np.float64).tolist())

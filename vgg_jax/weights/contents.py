"""This module says what a file of weights holds, before a network takes it."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

# The axes of a convolution's kernel in a file: output, input, height, width as in
# PyTorch and Caffe, or height, width, input, output as in TensorFlow and here.
OIHW, HWIO = "oihw", "hwio"

# The arrays of layers by the names of these, then by names of `VARIABLES`.
Layers = dict[str, dict[str, np.ndarray]]

# What a layer can have, by the names that Flax gives it.
VARIABLES = ("kernel", "bias", "scale", "mean", "var")


class Refusal(ValueError):
    """A file cannot be read; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """The layers of a file of weights, under the file's own names and in its own axes.

    Args:
        format: the kind of file, a key of `formats.FORMATS`.
        layers: for each layer the arrays that it has, by names of `VARIABLES`. The
            order is that of the network where the file tells it. The matrix of a
            fully-connected layer is [out, in] where `axes` is `OIHW` and [in, out]
            where it is `HWIO`.
        axes: `OIHW` or `HWIO`.
        others: the names of arrays that belong to no layer, such as an optimizer's.
        mean: what the file says is to be subtracted from the pixels 0-255 of each
            channel, in the order of the channels that `layers` expect.
        class_names: the names of the outputs, in their order.
        metadata: further facts that the file tells, such as "lineage".
        epsilons: what batch normalization adds to the variance, for each layer where
            that is not `models.layers.EPSILON`.
        notes: sentences on what the file does not tell, and what is supposed.
    """

    format: str
    layers: Mapping[str, Mapping[str, np.ndarray]]
    axes: str
    others: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


# What frameworks call the variables of a layer.
_VARIABLE = {
    "weight": "kernel",
    "kernel": "kernel",
    "filters": "kernel",
    "bias": "bias",
    "biases": "bias",
    "gamma": "scale",
    "scale": "scale",
    "beta": "bias",
    "running_mean": "mean",
    "moving_mean": "mean",
    "mean": "mean",
    "running_var": "var",
    "moving_variance": "var",
    "var": "var",
}
_COUNTERS = ("num_batches_tracked",)  # of PyTorch; nothing is computed with it


def group(
    arrays: Mapping[str, np.ndarray], separator: str = "."
) -> tuple[Layers, tuple[str, ...]]:
    """Groups named arrays into layers: "conv1.weight" is the kernel of "conv1".

    The weight of batch normalization, a vector, is its scale.

    Returns:
        The layers, and the names of arrays that belong to none.
    """
    layers: Layers = {}
    others = []
    for name, array in arrays.items():
        layer, _, last = name.rpartition(separator)
        variable = _VARIABLE.get(last)
        if last in _COUNTERS:
            continue
        if variable is None or not layer:
            others.append(name)
            continue
        if variable == "kernel" and array.ndim == 1:
            variable = "scale"
        layers.setdefault(layer, {})[variable] = array
    return layers, tuple(others)


def axes_of(arrays: Iterable[str]) -> str:
    """Tells the axes of kernels by the names of arrays.

    PyTorch calls a kernel `weight` and has `OIHW`; Flax says `kernel` and has `HWIO`.

    Raises:
        Refusal: there are both.
    """
    last = {name.replace("/", ".").rpartition(".")[2] for name in arrays}
    if {"weight", "kernel"} <= last:
        raise Refusal(
            "expected kernels called 'weight', as in PyTorch, or 'kernel', as in Flax, "
            "got both: their axes differ"
        )
    return HWIO if "kernel" in last else OIHW

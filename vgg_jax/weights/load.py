"""This module puts the weights of a file into a network."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.files import parse_path
from vgg_jax.models import MODELS, ConvNet, create_model
from vgg_jax.models.layers import BatchNorm, Conv, FullyConnected, Layer
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights.contents import OIHW, Contents, axes_of, group
from vgg_jax.weights.lineage import (
    LINEAGES,
    Origin,
    assert_source,
    channels_of_mean,
    recognize,
)
from vgg_jax.weights.naming import NAMINGS, Match, match
from vgg_jax.weights.published import PUBLISHED, Published, identify

Variables = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What came with weights, and what became of them.

    Args:
        source: the file or the name that was given.
        format: the kind of file, a key of `formats.FORMATS`.
        naming: how its layers are named, a key of `naming.NAMINGS`.
        lineage: who trained the weights, a key of `lineage.LINEAGES`; None if unknown.
        evidence: a sentence about how lineage and the order of channels are known.
        normalization: what is to be done to RGB pixels 0-255 before the network, which
            takes RGB whatever the file's order was; None where nothing tells it.
        class_names: the names of the outputs, where the file has them.
        taken: the layers of the network that have the file's weights now.
        kept: the layers of the network that are as they were before.
        unused: the names in the file that nothing was taken from.
        path: the file that was read; None for a mapping.
    """

    source: str
    format: str
    naming: str
    lineage: str | None
    evidence: str
    normalization: Normalization | None
    class_names: tuple[str, ...] | None
    taken: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    path: str | None = None

    def __str__(self) -> str:
        """Says in a few lines what was loaded."""
        lines = [
            f"{self.source}: {self.format}, names of {self.naming}",
            f"  lineage: {self.lineage or 'unknown'} ({self.evidence})",
            f"  taken: {', '.join(self.taken)}",
        ]
        if self.kept:
            lines.append(f"  as before: {', '.join(self.kept)}")
        if self.unused:
            lines.append(f"  unused in the file: {', '.join(self.unused)}")
        return "\n".join(lines)


def load_weights(
    model: ConvNet,
    path_or_mapping: str | os.PathLike[str] | Mapping[str, np.ndarray],
    source: str | None = None,
    *,
    trunk: bool = False,
) -> Loaded:
    """Fills a network in place with the weights of a file of any known format.

    The layer of the classes stays as it is where the network has another number of
    them; a backbone takes the layers that it has. The network takes RGB afterwards.

    Args:
        model: the network.
        path_or_mapping: a file, or the name of published weights, see
            `published.PUBLISHED`; or arrays by their names, such as a `state_dict()`
            turned into NumPy, or a tree of parameters of Flax.
        source: whose weights they are, a key of `lineage.LINEAGES`; None leaves that to
            the values of the first filters.
        trunk: whether a file without any fully-connected layer will do for a
            classifier, whose own stay as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a library that reads the format is missing; the message names it.
        ValueError: the file is damaged, or not of this network, or its weights are not
            those of `source`; the message lists what was expected and found.
    """
    if isinstance(path_or_mapping, Mapping):
        contents = contents_of(path_or_mapping)
        name = "the mapping"
    else:
        from vgg_jax.weights.fetch import fetch
        from vgg_jax.weights.formats import read

        name = os.fspath(path_or_mapping)
        path = fetch(name)
        is_named = os.fspath(path) != os.fspath(parse_path(name))
        loaded = fill(
            model,
            read(os.fspath(path)),
            name,
            source,
            lambda: PUBLISHED[name] if is_named else identify(path),
            trunk=trunk,
        )
        return dataclasses.replace(loaded, path=os.fspath(path))
    return fill(model, contents, name, source, trunk=trunk)


def contents_of(mapping: Mapping[str, Any]) -> Contents:
    """Says what a mapping of arrays holds, which may be nested.

    Raises:
        ValueError: a name is no text, a value is no array of numbers, or names are
            those of two conventions.
    """
    arrays: dict[str, np.ndarray] = {}

    def collect(tree: Mapping[Any, Any], prefix: str) -> None:
        for name, value in tree.items():
            if not isinstance(name, str):
                raise ValueError(f"the mapping: expected names, got {name!r}")
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{name}.")
                continue
            array = np.asarray(value)
            if array.dtype == object:
                raise ValueError(
                    f"the mapping: expected an array of numbers as {prefix}{name}, got "
                    f"{type(value).__name__}"
                )
            arrays[prefix + name] = array

    collect(mapping, "")
    layers, others = group(arrays)
    return Contents(
        format="mapping", layers=layers, axes=axes_of(arrays), others=others
    )


class Fit(NamedTuple):
    """How what a file holds fits a network.

    Args:
        found: the names of the network's rows in the file.
        variables: the arrays of the rows that fit, in this library's axes.
        problems: a line for each difference, but for those of the classes' layer.
    """

    found: Match
    variables: Variables
    problems: list[str]


def fit(model: ConvNet, contents: Contents, *, trunk: bool = False) -> Fit:
    """Finds the rows of a network in a file, and compares names and shapes.

    Args:
        model: the network.
        contents: what was read.
        trunk: as `load_weights` takes it.
    """
    found = match(model.layers, list(contents.layers))
    shapes = _shapes(model)
    variables: Variables = {
        row.name: in_our_axes(contents.layers[found.found[row.name]], row, contents)
        for row in model.layers
        if row.name in found.found
    }
    head = class_layer(model)
    dense = tuple(row.name for row in model.layers if isinstance(row, FullyConnected))
    if trunk and not variables.keys() & set(dense):
        head += dense
    problems = [
        f"  {row}: expected under the name {wanted!r}, which the file does not have"
        for row, wanted in found.missing.items()
        if row not in head
    ]
    if found.rivals:
        prefixes = ", ".join(map(repr, (found.prefix, *found.rivals)))
        problems.append(
            f"  expected one network, and there are several, with {prefixes} before "
            "their names; give the arrays of one as a mapping"
        )
    for row, arrays in list(variables.items()):
        differing = _differences(row, shapes[row], arrays)
        if differing and row in head:
            del variables[row]
        elif differing:
            problems += differing
    problems += [
        f"  {layer!r} of the file: no layer of this network"
        for layer in found.unused
        if layer in _trunk_names(found)
    ]
    return Fit(found, variables, problems)


def fill(
    model: ConvNet,
    contents: Contents,
    name: str,
    source: str | None = None,
    published: Callable[[], Published | None] = lambda: None,
    *,
    trunk: bool = False,
) -> Loaded:
    """Fills a network in place with what a file holds; see `load_weights`.

    The network may be an abstract one, of `nnx.eval_shape`.

    Args:
        model: the network.
        contents: what was read.
        name: the name of the file, for messages.
        source: a key of `lineage.LINEAGES`, or None.
        published: finds out which published file it is, where nothing else tells whose
            weights they are.
        trunk: as `load_weights` takes it.

    Raises:
        ValueError: as `load_weights`.
    """
    found, variables, problems = fit(model, contents, trunk=trunk)
    if problems:
        raise ValueError(
            f"{name} does not have the weights of this network:\n"
            + "\n".join(problems)
            + "\n  layers of the file: "
            + (", ".join(contents.layers) or "none")
        )
    _refuse_whole_numbers(variables, name)
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        for arrays in variables.values():
            for variable, array in arrays.items():
                arrays[variable] = np.asarray(array, np.float32)
    refuse_not_finite(variables, name)
    origin = find_origin(model, contents, variables, name, source, published)
    _put_in_order(variables, _first(model), origin)
    for row, arrays in variables.items():
        for variable, array in arrays.items():
            target: nnx.Variable = getattr(getattr(model, row), variable)
            target.set_value(jnp.asarray(array, target.get_value().dtype))
    return Loaded(
        source=name,
        format=contents.format,
        naming=found.naming,
        lineage=origin.lineage,
        evidence=origin.evidence,
        normalization=find_normalization(contents, origin),
        class_names=contents.class_names,
        taken=tuple(variables),
        kept=tuple(row for row in _shapes(model) if row not in variables),
        unused=found.unused + contents.others,
    )


def _shapes(model: ConvNet) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shape of each variable of each layer that has weights."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for row in model.layers:
        if isinstance(row, Conv | BatchNorm):
            module = getattr(model, row.name)
            state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
            shapes[row.name] = {name: array.shape for name, array in state.items()}
    return shapes


def _first(model: ConvNet) -> str:
    """Names the first convolution, which sees the color channels."""
    return next(row.name for row in model.layers if isinstance(row, Conv))


def class_layer(model: ConvNet) -> tuple[str, ...]:
    """Names the layer whose outputs are the classes; a backbone has none."""
    convolutions = [row.name for row in model.layers if isinstance(row, Conv)]
    return () if model.num_classes is None else (convolutions[-1],)


def in_our_axes(
    arrays: Mapping[str, np.ndarray], row: Layer, contents: Contents
) -> dict[str, np.ndarray]:
    """Gives the arrays of a layer the axes that they have here: HWIO.

    The matrix of a fully-connected layer becomes the kernel that it equals on a map of
    the row's kernel size; a file's order of its inputs is C, H, W where its kernels are
    `OIHW`, and H, W, C where they are `HWIO`. What does not fit keeps its shape.
    """
    arranged = {name: np.asarray(array) for name, array in arrays.items()}
    kernel = arranged.get("kernel")
    if kernel is None:
        return arranged
    is_dense = isinstance(row, FullyConnected)
    if is_dense and contents.axes == OIHW and kernel.shape[:2] == (1, 1):
        kernel = kernel[0, 0]  # Caffe's matrices are [1, 1, out, in]
    if kernel.ndim == 2 and isinstance(row, Conv):
        side = row.kernel
        outputs, inputs = kernel.shape if contents.axes == OIHW else kernel.shape[::-1]
        if inputs % side**2 == 0:
            channels = inputs // side**2
            if contents.axes == OIHW:
                kernel = kernel.reshape(outputs, channels, side, side)
            else:
                kernel = kernel.reshape(side, side, channels, outputs)
    if kernel.ndim == 4 and contents.axes == OIHW:
        kernel = kernel.transpose(2, 3, 1, 0)
    return arranged | {"kernel": kernel}


def _differences(
    row: str,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
) -> list[str]:
    """Says which variables of a layer are not what the network has."""
    found = {name: array.shape for name, array in arrays.items()}
    return [
        f"  {row}.{name}: expected {shapes.get(name, 'no such array')}, "
        f"got {found.get(name, 'no such array')}"
        for name in dict.fromkeys((*shapes, *found))
        if shapes.get(name) != found.get(name)
    ]


def refuse_not_finite(variables: Variables, name: str) -> None:
    """Raises an error where weights that are to be taken are not numbers."""
    for row, arrays in variables.items():
        for variable, array in arrays.items():
            count = array.size - np.count_nonzero(np.isfinite(array))
            if count:
                raise ValueError(
                    f"{name}: {count:,} of the {array.size:,} values of {row}."
                    f"{variable} are not finite numbers; the file is damaged, or that "
                    "layer was never trained: a backbone (num_classes=None) or another "
                    "number of classes leaves the last layer out"
                )


def _refuse_whole_numbers(variables: Variables, name: str) -> None:
    """Raises an error where weights are whole numbers, as quantized ones are."""
    for row, arrays in variables.items():
        for variable, array in arrays.items():
            if array.dtype.kind in "iub":
                raise ValueError(
                    f"{name}: expected floating-point values of {row}.{variable}, got "
                    f"{array.dtype}; quantized weights need their scales: save them "
                    "as float32"
                )


def find_origin(
    model: ConvNet,
    contents: Contents,
    variables: Variables,
    name: str,
    source: str | None = None,
    published: Callable[[], Published | None] = lambda: None,
) -> Origin:
    """Finds out whose weights they are: by their values, else by what is said of them.

    Args:
        model: the network.
        contents: what the file holds.
        variables: the arrays of its rows, as `fit` gives them.
        name: the name of the file, for messages.
        source: what the user says, a key of `lineage.LINEAGES`, or None.
        published: finds out which published file it is; asked last.

    Raises:
        ValueError: they are known, and not those of `source`.
    """
    first = variables[_first(model)]
    known = recognize(first["kernel"], first.get("bias"))
    asserted = None if source is None else assert_source(source)
    if known is not None:
        if source not in (None, known.lineage):
            raise ValueError(
                f"{name}: expected weights of {source!r}, and {known.evidence}; leave "
                f"source out, or give source={known.lineage!r}"
            )
        return known
    channels = contents.metadata.get("channels")
    lineage = contents.metadata.get("lineage")
    row = published() if asserted is None and lineage is None else None
    order = "channels are as in the file"
    if channels is not None:
        order = f"the file says that channels are {channels}"
    elif channels := channels_of_mean(contents.mean):
        order = f"the file's mean color is ImageNet's in the order {channels}"
    elif row is not None:
        channels = row.channels
        order = f"channels are {channels} in it"
    elif asserted is not None:
        channels = asserted.channels
        order = f"channels are {channels} as is usual there"
    if asserted is not None:
        lineage = source
        lineage_evidence = f"given as source={source!r}"
    elif lineage is not None:
        lineage_evidence = "the file says so"
    elif row is not None:
        lineage = row.lineage
        lineage_evidence = f"it is the file published as {row.name}"
    else:
        lineage_evidence = "the values of the first filters are not known"
    return Origin(
        lineage=lineage,
        channels=channels,
        transposed=False,
        evidence=f"{lineage_evidence}; {order}",
    )


def _put_in_order(variables: Variables, first: str, origin: Origin) -> None:
    """Exchanges rows and columns, and turns BGR into RGB, where a file has them so."""
    for arrays in variables.values():
        if origin.transposed and "kernel" in arrays:
            arrays["kernel"] = arrays["kernel"].swapaxes(0, 1)
    if origin.channels == "BGR":
        kernel = variables[first]["kernel"]
        variables[first]["kernel"] = kernel[:, :, ::-1]


def find_normalization(contents: Contents, origin: Origin) -> Normalization | None:
    """Returns what the file says is done to pixels, else what its authors do."""
    stored = contents.metadata.get("normalization")
    if stored is not None:
        return Normalization(**json.loads(stored))
    if contents.mean is not None:
        mean = contents.mean[::-1] if origin.channels == "BGR" else contents.mean
        return Normalization(mean=mean, std=(1.0,) * len(mean))
    lineage = LINEAGES.get(origin.lineage or "")  # a file can name any other
    return None if lineage is None else lineage.normalization


@functools.cache
def known_networks() -> Mapping[str, ConvNet]:
    """Makes every network of `MODELS` without values, by its name."""
    return {name: abstract_network(name) for name in MODELS}


def abstract_network(name: str, **options: Any) -> ConvNet:
    """Makes a network without values: its variables have shapes only.

    Args:
        name: a key of `MODELS`.
        **options: the options of `models.create_model`.
    """
    key = jax.random.key(0)
    return nnx.eval_shape(lambda: create_model(name, rngs=key, **options))


def _trunk_names(found: Match) -> set[str]:
    """Returns the names that a layer of any known network's trunk has in this naming.

    A file with such a layer which a network does not have is of a deeper network.
    """
    names = NAMINGS[found.naming]
    return {
        found.prefix + name
        for network in known_networks().values()
        for row, name in names(network.layers).items()
        if row.startswith(("conv", "bn", "cccp")) and row not in class_layer(network)
    }

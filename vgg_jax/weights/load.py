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
from vgg_jax.models.layers import EPSILON, BatchNorm, Conv, FullyConnected, Layer
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights.contents import OIHW, Contents, axes_of, group
from vgg_jax.weights.lineage import (
    FORMATS_OF_BOTH_ORDERS,
    LINEAGES,
    Origin,
    assert_source,
    channels_of_mean,
    exchange_red_and_blue,
    recognize,
    validate_channels,
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
        class_names: the names of the outputs of the file's own last layer, where the
            file has as many.
        taken: the layers of the network that have the file's weights now.
        kept: the layers of the network that are as they were before.
        unused: the names in the file that nothing was taken from.
        path: the file that was read; None for a mapping.
        notes: sentences on what the file does not tell or tells wrongly, and what is
            supposed in its place.
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
    notes: tuple[str, ...] = ()

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
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(
    model: ConvNet,
    path_or_mapping: str | os.PathLike[str] | Mapping[str, np.ndarray],
    source: str | None = None,
    *,
    channels: str | None = None,
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
        channels: the order of the color channels that the file's network takes, "RGB"
            or "BGR"; None where the file or `source` tells it.
        trunk: whether a file without any fully-connected layer will do for a
            classifier, whose own stay as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a library that reads the format is missing; the message names it.
        ValueError: the file is damaged, or not of this network; its weights are not
            those of `source`, or of other `channels`; or nothing tells the order of
            channels in a format where both are usual. The message lists what was
            expected and found.
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
            channels,
            lambda: PUBLISHED[name] if is_named else identify(path),
            trunk=trunk,
        )
        return dataclasses.replace(loaded, path=os.fspath(path))
    return fill(model, contents, name, source, channels, trunk=trunk)


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
    channels: str | None = None,
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
        channels: "RGB", "BGR" or None, as `load_weights` takes it.
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
    for row, arrays in variables.items():
        epsilon = contents.epsilons.get(found.found[row])
        if epsilon is not None and "var" in arrays:
            # The sum of variance and epsilon, and so every output, stays what it was.
            arrays["var"] = arrays["var"].astype(np.float64) + (epsilon - EPSILON)
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        for arrays in variables.values():
            for variable, array in arrays.items():
                arrays[variable] = np.asarray(array, np.float32)
    refuse_not_finite(variables, name)
    origin = find_origin(model, contents, variables, name, source, channels, published)
    is_color = variables[_first(model)]["kernel"].shape[2] == 3
    if origin.channels is None and is_color:
        _refuse_unknown_order(contents, name)
    normalization = find_normalization(contents, origin, name, model.in_channels)
    notes, class_names = contents.notes, contents.class_names
    if wrong := wrong_class_names(contents, num_classes_in(model, contents, found)):
        notes, class_names = (*notes, wrong), None
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
        normalization=normalization,
        class_names=class_names,
        taken=tuple(variables),
        kept=tuple(row for row in _shapes(model) if row not in variables),
        unused=found.unused + contents.others,
        notes=notes,
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


def num_classes_in(model: ConvNet, contents: Contents, found: Match) -> int | None:
    """Returns how many classes a file has weights for.

    Args:
        model: the network, with any number of classes.
        contents: what the file holds.
        found: where the network's weights are in the file.

    Returns:
        The outputs of the last layer in the file; None where it has none of that name,
        or the network is a backbone.
    """
    for last in class_layer(model):
        if last in found.found:
            row = next(row for row in model.layers if row.name == last)
            layer = contents.layers[found.found[last]]
            kernel = in_our_axes(layer, row, contents).get("kernel")
            return None if kernel is None else int(kernel.shape[-1])
    return None


def wrong_class_names(contents: Contents, num_classes: int | None) -> str | None:
    """Says that a file's names of classes are not as many as its outputs.

    Args:
        contents: what the file holds.
        num_classes: the outputs; None where they are not known.

    Returns:
        The sentence; None where nothing is wrong.
    """
    names = contents.class_names
    if names is None or num_classes in (None, len(names)):
        return None
    return (
        f"its names of classes are left out: expected {num_classes:,}, one an output, "
        f"got {len(names):,}"
    )


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
    channels: str | None = None,
    published: Callable[[], Published | None] = lambda: None,
) -> Origin:
    """Finds out whose weights they are: by their values, else by what is said of them.

    Args:
        model: the network.
        contents: what the file holds.
        variables: the arrays of its rows, as `fit` gives them.
        name: the name of the file, for messages.
        source: what the user says, a key of `lineage.LINEAGES`, or None.
        channels: what the user says, "RGB" or "BGR", or None.
        published: finds out which published file it is; asked last.

    Raises:
        ValueError: they are known, and not those of `source` or not of `channels`.
    """
    if channels is not None:
        validate_channels(channels)
    first = variables[_first(model)]
    known = recognize(first["kernel"], first.get("bias"))
    asserted = None if source is None else assert_source(source)
    if known is not None:
        if source not in (None, known.lineage):
            raise ValueError(
                f"{name}: expected weights of {source!r}, and {known.evidence}; leave "
                f"source out, or give source={known.lineage!r}"
            )
        if channels not in (None, known.channels):
            raise _other_channels(name, channels, known.evidence)
        return known
    lineage = contents.metadata.get("lineage")
    row = published() if asserted is None and lineage is None else None
    order = "channels are as in the file"
    if told := contents.metadata.get("channels"):
        order = f"the file says that channels are {told}"
    elif told := channels_of_mean(contents.mean):
        order = f"the file's mean color is ImageNet's in the order {told}"
    elif row is not None:
        told = row.channels
        order = f"channels are {told} in it"
    if channels is not None and told not in (None, channels):
        raise _other_channels(name, channels, order)
    if told is not None:
        channels = told
    elif channels is not None:
        order = f"given as channels={channels!r}"
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


def _other_channels(name: str, channels: str | None, evidence: str) -> ValueError:
    """Makes the error for an order of channels that the file denies."""
    return ValueError(
        f"{name}: expected channels {channels}, and {evidence}; leave channels out"
    )


def _refuse_unknown_order(contents: Contents, name: str) -> None:
    """Raises an error where red and blue could be either way around in a file."""
    if contents.format in FORMATS_OF_BOTH_ORDERS:
        raise ValueError(
            f"{name}: nothing tells whether its network takes RGB or BGR, and files of "
            f"the format {contents.format} do both; say channels='RGB' or 'BGR' "
            "(--channels), or whose weights they are by source= (--source); `python -m "
            "vgg_jax.weights convert FILE OUT.safetensors --channels ORDER` writes a "
            "file that tells it"
        )


def _put_in_order(variables: Variables, first: str, origin: Origin) -> None:
    """Exchanges rows and columns, and turns BGR into RGB, where a file has them so."""
    for arrays in variables.values():
        if origin.transposed and "kernel" in arrays:
            arrays["kernel"] = arrays["kernel"].swapaxes(0, 1)
    if origin.channels == "BGR":
        kernel = variables[first]["kernel"]
        variables[first]["kernel"] = exchange_red_and_blue(kernel, 2)


def find_normalization(
    contents: Contents, origin: Origin, name: str, in_channels: int
) -> Normalization | None:
    """Returns what the file says is done to pixels, else what its authors do.

    Args:
        contents: what the file holds.
        origin: whose weights they are, and the order of their channels.
        name: the name of the file, for messages.
        in_channels: the channels of the network's images.

    Raises:
        ValueError: the file says what cannot be done, or is for other channels.
    """
    lineage = LINEAGES.get(origin.lineage or "")  # a file can name any other
    stored = contents.metadata.get("normalization")
    try:
        if stored is not None:
            told = Normalization(**json.loads(stored))
        elif contents.mean is not None:
            mean = np.asarray(contents.mean)
            if origin.channels == "BGR":
                mean = exchange_red_and_blue(mean)
            told = Normalization(mean=mean.tolist(), std=np.ones(mean.size).tolist())
        elif lineage is not None and lineage.normalization is not None:
            usual = lineage.normalization
            return usual if usual.channels == in_channels else None
        else:
            return None
    except ValueError as error:
        raise ValueError(f"{name}: its normalization cannot be: {error}") from error
    if told.channels != in_channels:
        raise ValueError(
            f"{name}: expected a normalization of {in_channels} channels, as its first "
            f"filters have, got one of {told.channels}: {told}"
        )
    return told


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

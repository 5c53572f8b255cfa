"""This module reads the HDF5 files of Keras 2, Keras 3 and KerasHub.

Keras 3's archives, `.keras`, have such a file within, which is read where it lies.
HDF5's library finds where arrays lie; their values are read from the file itself, so
that nothing is decompressed, and nothing comes from other files that this one names.
"""

import io
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import h5py
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import HWIO, Contents, Layers
from vgg_jax.weights.readers.mapped import (
    Refusal,
    map_array,
    map_file,
    naming_damage,
    view_of,
)
from vgg_jax.weights.readers.metadata import parse_class_names, validate_metadata
from vgg_jax.weights.readers.zipped import entries_of, entry_bytes

# The files of an archive: the layers and their options, and the arrays.
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LARGEST_CONFIG = 2**22  # bytes; that of a VGG has some thousand
# What a batch normalization of Keras adds to the variance if its user says nothing.
USUAL_EPSILON = 1e-3

Datasets = Mapping[str, np.ndarray]  # by their paths in the file

# What Keras 1 and 2 call the variables of a layer, behind the layer's name or scope, as
# `block1_conv1_W_1:0` or `kernel:0`.
_KERAS_2_NAME = re.compile(
    r"(?:(?P<scope>.*)_)?(?P<variable>W|kernel|b|bias|gamma|beta|moving_mean|"
    r"running_mean|moving_variance|running_std)(?:_\d+)?(?::\d+)?"
)
_VARIABLES = {
    "W": "kernel",
    "kernel": "kernel",
    "b": "bias",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "running_mean": "mean",
    "moving_variance": "var",
    "running_std": "var",  # Keras 1 called a variance so
}
# Keras 3 counts the variables of a layer; their numbers of axes tell what they are.
_KERAS_3_VARIABLES = {
    (4, 1): ("kernel", "bias"),
    (2, 1): ("kernel", "bias"),
    (4,): ("kernel",),
    (2,): ("kernel",),
    (1, 1, 1, 1): ("scale", "bias", "mean", "var"),
}
# Names that Keras gives where its user gave none; they count all layers of a program.
_COUNTED = re.compile(r"(conv2d|dense|batch_normalization)(_\d+)?")


class _Bytes(io.RawIOBase):
    """Bytes as a file that HDF5's library can read."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view, self._place = view, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._place,
            io.SEEK_END: len(self._view),
        }
        self._place = starts[whence] + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._view[self._place :][: len(buffer)]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def read(path: Path) -> Contents:
    """Reads a file of weights or of a whole model, or an archive with one.

    A layer has the name that its user gave it, else its path in the file. The attribute
    "vgg_jax" of a file that this library wrote is a JSON object, its metadata.

    Raises:
        ValueError: the file is damaged, or not Keras's.
    """
    file = map_file(path)
    view = view_of(file)
    with naming_damage(path):
        options = ""
        if bytes(view[:4]) == b"PK\x03\x04":
            entries = entries_of(file, view)
            told_options = entry_bytes(view, entries, CONFIG)[: LARGEST_CONFIG + 1]
            options = bytes(told_options).decode()
            view = entry_bytes(view, entries, WEIGHTS)
        _validate_heaps(view)
        try:
            with h5py.File(_Bytes(view), "r") as root:
                datasets, names = _walk(root, view)
                base = "model_weights/" if "model_weights" in root else ""
                order = _texts(root[base or "/"], "layer_names")
                told = _texts(root, "vgg_jax")
                options = options or "".join(_texts(root, "model_config"))
        except (OSError, RuntimeError) as error:
            raise Refusal(
                f"the HDF5 library cannot read it ({error}); it is damaged or not "
                "whole: get it anew"
            ) from error
        if order:
            layers = _keras_2_layers(datasets, base, order)
        else:
            layers = _keras_3_layers(datasets, names)
        if not layers:
            raise Refusal(
                "expected layers as Keras saves them, got an HDF5 file with "
                f"{len(datasets)} arrays and none of a layer"
            )
        taken = {id(array) for arrays in layers.values() for array in arrays.values()}
        others = tuple(name for name in datasets if id(datasets[name]) not in taken)
        metadata = validate_metadata(json.loads(told[0]) if told else {})
        normalized = [layer for layer, arrays in layers.items() if "var" in arrays]
        epsilons: dict[str, float] = {}
        notes: tuple[str, ...] = ()
        if normalized and not told:
            epsilons, notes = _epsilons(normalized, names, options)
        return Contents(
            format="keras",
            layers=layers,
            axes=HWIO,
            others=others,
            class_names=parse_class_names(metadata.get("class_names")),
            metadata=metadata,
            epsilons=epsilons,
            notes=notes,
        )


def _epsilons(
    layers: Sequence[str], names: Mapping[str, str], options: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Finds what each batch normalization adds to the variance.

    Args:
        layers: the layers of batch normalization, as `Contents` has them.
        names: the names that groups of the file keep.
        options: the JSON of the model's layers and their options; "" without.

    Returns:
        The number for each layer, and what is to be said of it.
    """
    if not options:
        return dict.fromkeys(layers, USUAL_EPSILON), (
            "the file does not tell what batch normalization adds to the variance: "
            f"Keras's usual {USUAL_EPSILON:g} is taken; a .keras archive tells it",
        )
    told = _told_epsilons(options)
    epsilons = {}
    for layer in layers:
        # The names of a layer and of the models that it is within.
        own = (names.get(f"{layer}/vars", ""), *reversed(layer.split("/")))
        named = [told[name] for name in own if name in told]
        values = set(named[:1] or told.values())
        if len(values) != 1:
            raise Refusal(
                f"expected to be told what the batch normalization {layer} adds to the "
                f"variance, got {sorted(values) or 'nothing'}"
            )
        (epsilons[layer],) = values
    return epsilons, ()


def _told_epsilons(options: str) -> dict[str, float]:
    """Returns the epsilon of each batch normalization among a model's options."""
    if len(options) > LARGEST_CONFIG:
        raise Refusal(
            f"expected at most {LARGEST_CONFIG:,} bytes of options of layers, got more"
        )
    epsilons = {}
    values = [json.loads(options)]
    while values:
        match values.pop():
            case {
                "class_name": "BatchNormalization",
                "config": {"name": str(name), "epsilon": float(epsilon)},
            } if 0 < epsilon < math.inf:
                epsilons[name] = epsilon
            case {"class_name": "BatchNormalization", **options_of_layer}:
                raise Refusal(
                    "expected a name and an epsilon above 0 of a batch normalization, "
                    f"got {options_of_layer!r:.100}"
                )
            case dict(mapping):
                values += mapping.values()
            case list(sequence):
                values += sequence
    return epsilons


def _validate_heaps(view: memoryview) -> None:
    """Looks at the collections of texts: HDF5's library never ends at one of no size.

    A collection has 16 bytes of its own, then objects: their number, which is 0 for
    what is free, and their size, which is that of the whole for what is free.
    """
    for match in re.finditer(rb"GCOL\x01\x00{3}", view):
        place = match.start() + 16
        end = match.start() + struct.unpack_from("<Q", view, place - 8)[0]
        while place + 16 <= end:
            number, _, _, size = struct.unpack_from("<HHIQ", view, place)
            step = 16 + size + -size % 8 if number else size
            if step < 16 or place + step > end:
                raise Refusal(
                    f"expected texts of HDF5 at byte {place:,}; the file is damaged or "
                    "not whole: get it anew"
                )
            place += step


def _walk(
    root: h5py.File, view: memoryview
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns all arrays by their paths, and of groups the names that they keep."""
    arrays, names = {}, {}
    groups = [("", root)]
    seen = {root}
    while groups:
        path, group = groups.pop()
        if "name" in group.attrs:
            names[path.removesuffix("/")] = _texts(group, "name")[0]
        for child in group:
            if not isinstance(group.get(child, getlink=True), h5py.HardLink):
                raise Refusal(
                    f"{path}{child} of the file is a link to another place, which is "
                    "not followed"
                )
            member = group[child]
            if member in seen:
                raise Refusal(f"{path}{child} of the file stands in it twice")
            seen.add(member)
            if isinstance(member, h5py.Group):
                groups.append((f"{path}{child}/", member))
            elif isinstance(member, h5py.Dataset) and _type_of(member) is not None:
                arrays[path + child] = _map_dataset(path + child, member, view)
    return arrays, names


def _type_of(dataset: h5py.Dataset) -> np.dtype | None:
    """Returns the type of floating-point values; None for other arrays.

    HDF5 does not know bfloat16: Keras writes its bytes, and its name as an attribute.
    """
    if dataset.dtype.kind == "f":
        return dataset.dtype
    is_half = dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2
    if is_half and _texts(dataset, "dtype") == ["bfloat16"]:
        return np.dtype(jnp.bfloat16)
    return None


def _map_dataset(name: str, dataset: h5py.Dataset, view: memoryview) -> np.ndarray:
    dtype = _type_of(dataset)
    start = dataset.id.get_offset()
    if dataset.shape is None or start is None or dtype is None:
        raise Refusal(
            f"expected {name} in one piece as Keras saves it, and it is compressed, in "
            "another file or has no values"
        )
    array = map_array(view, start, dataset.shape, dtype)
    return np.asarray(array, dtype.newbyteorder("="))


def _texts(group: h5py.Group | h5py.Dataset, name: str) -> list[str]:
    """Returns an attribute that is a text or texts; Keras counts parts of a long one.

    None are returned where there is no such attribute.
    """
    attributes = group.attrs
    texts: list[str] = []
    for part in (name, *(f"{name}{i}" for i in range(len(attributes)))):
        if part in attributes:
            values = np.ravel(attributes[part]).tolist()
            texts += [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return texts


def _keras_2_layers(datasets: Datasets, base: str, order: list[str]) -> Layers:
    """Groups arrays at `LAYER/SCOPE/VARIABLE`, where SCOPE may be missing.

    A model that is a layer of another has its layers as scopes.
    """
    layers: Layers = {}
    for layer in order:
        start = f"{base}{layer}/"
        scopes: Layers = {}
        for path, array in datasets.items():
            scope, _, last = path.removeprefix(start).rpartition("/")
            name = _KERAS_2_NAME.fullmatch(last)
            if path.startswith(start) and name:
                variables = scopes.setdefault(scope or name["scope"] or "", {})
                variables[_VARIABLES[name["variable"]]] = array
        for scope, variables in scopes.items():
            layers[layer if len(scopes) == 1 else f"{layer}/{scope}"] = variables
    return layers


def _keras_3_layers(datasets: Datasets, names: Mapping[str, str]) -> Layers:
    """Groups arrays at `PATH/vars/NUMBER`."""
    layers: Layers = {}
    counts = Counter(names.values())
    for path, arrays in _vars(datasets):
        variables = _KERAS_3_VARIABLES.get(tuple(array.ndim for array in arrays))
        if variables is None:
            continue
        name = names.get(f"{path}/vars", "")
        if counts[name] != 1 or _COUNTED.fullmatch(name):
            name = path
        layers[name] = dict(zip(variables, arrays, strict=True))
    return layers


def _vars(datasets: Datasets) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Returns the path of each layer, and its variables in their order."""
    paths: dict[str, list[str]] = {}
    for name in sorted(datasets, key=_natural):
        layer, separator, number = name.rpartition("/vars/")
        if separator and number.isdecimal():
            paths.setdefault(layer, []).append(name)
    for layer, names in paths.items():
        yield layer, [datasets[name] for name in names]


def _natural(name: str) -> list[str | int]:
    """Orders counted names by their numbers, `conv2d_10` after `conv2d_9`."""
    return [
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)
    ]

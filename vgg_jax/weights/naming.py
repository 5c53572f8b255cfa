"""This module finds each layer of a network in a file, whatever its names are there."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vgg_jax.models.layers import BatchNorm, Conv, FullyConnected, Layer

Names = dict[str, str]  # the name of a row -> the name of the layer in the file


def _has_weights(row: Layer) -> bool:
    return isinstance(row, Conv | BatchNorm)


def _split(rows: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """Divides rows into the trunk, to the last pool of a VGG, and the classifier."""
    dense = [i for i, row in enumerate(rows) if isinstance(row, FullyConnected)]
    end = dense[0] if dense else len(rows)
    return rows[:end], rows[end:]


def _torchvision(rows: Sequence[Layer]) -> Names:
    """`features.N` and `classifier.N`, where N counts the rows of either part."""
    trunk, classifier = _split(rows)
    return {
        row.name: f"{part}.{i}"
        for part, own in (("features", trunk), ("classifier", classifier))
        for i, row in enumerate(own)
        if _has_weights(row)
    }


def _timm(rows: Sequence[Layer]) -> Names:
    """torchvision's trunk, then convolutions and a layer of classes."""
    head = {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "fc8": "head.fc"}
    names = _torchvision(rows)
    return names | {row: head[row] for row in names if row in head}


def _keras(rows: Sequence[Layer]) -> Names:
    """`block1_conv1`, `block1_bn1` and so on; `fc1`, `fc2` and `predictions`."""
    head = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    names = {}
    for row in rows:
        place = re.fullmatch(r"(conv|bn)(\d)_(\d)", row.name)
        if place:
            names[row.name] = f"block{place[2]}_{place[1]}{place[3]}"
        elif _has_weights(row):
            names[row.name] = head.get(row.name, row.name)
    return names


def _keras_counted(rows: Sequence[Layer]) -> Names:
    """`conv2d`, `conv2d_1` and so on in their order; `dense` for fully-connected."""
    counts: dict[str, int] = {}
    names = {}
    for row in rows:
        if not _has_weights(row):
            continue
        kind = "batch_normalization" if isinstance(row, BatchNorm) else "conv2d"
        if isinstance(row, FullyConnected):
            kind = "dense"
        count = counts[kind] = counts.get(kind, -1) + 1
        names[row.name] = f"{kind}_{count}" if count else kind
    return names


def _keras_hub(rows: Sequence[Layer]) -> Names:
    """KerasHub's trunk and, counted anew, its classifier."""
    trunk, classifier = _split(rows)
    head = ("conv2d", "conv2d_1", "dense")
    places = [row.name for row in classifier if isinstance(row, FullyConnected)]
    return {
        row: f"vgg_backbone/layers/{name}"
        for row, name in _keras_counted(trunk).items()
    } | {
        row: f"sequential/layers/{name}"
        for row, name in zip(places, head, strict=False)
    }


def _caffe(rows: Sequence[Layer]) -> Names:
    """This library's names are Caffe's; the zoo's NiN adds the width to some."""
    wide = {"conv4": "conv4-1024", "cccp7": "cccp7-1024", "cccp8": "cccp8-1024"}
    return {r.name: wide.get(r.name, r.name) for r in rows if _has_weights(r)}


def _own(rows: Sequence[Layer]) -> Names:
    """The names of this library."""
    return {row.name: row.name for row in rows if _has_weights(row)}


def _flax_counted(rows: Sequence[Layer]) -> Names:
    """`Conv_0`, `Conv_1` and so on in their order, as Flax's Linen counts."""
    convolutions = [row.name for row in rows if isinstance(row, Conv)]
    return {name: f"Conv_{i}" for i, name in enumerate(convolutions)}


# How networks are named in files. The first that finds the most layers is taken.
NAMINGS: dict[str, Callable[[Sequence[Layer]], Names]] = {
    "vgg_jax": _own,
    "torchvision": _torchvision,
    "timm": _timm,
    "keras": _keras,
    "caffe": _caffe,
    "keras_hub": _keras_hub,
    "keras_counted": _keras_counted,
    "flax_counted": _flax_counted,
}


class Match(NamedTuple):
    """How a network is named in a file.

    Args:
        naming: a key of `NAMINGS`.
        prefix: what stands before every name.
        found: the layer in the file of each row that the file has.
        missing: the rows that it does not have, by the names that were looked for.
        unused: the layers of the file that no row has asked for.
        rivals: the prefixes of other networks in the file, of which as many layers are
            there.
    """

    naming: str
    prefix: str
    found: Names
    missing: Names
    unused: tuple[str, ...]
    rivals: tuple[str, ...] = ()


def match(rows: Sequence[Layer], layers: Sequence[str]) -> Match:
    """Finds the rows of a network among the names of a file's layers.

    Names may stand behind a prefix, such as `module.` or `VGG16_0/`, the same for all;
    torchvision's trunk may be cut into slices, as perceptual losses do,
    `net.slice2.7` for `features.7`.

    Args:
        rows: the rows of the network.
        layers: the names of the layers in the file.
    """
    plain = {_without_slices(name): name for name in layers}
    matches = []
    for naming, names_of in NAMINGS.items():
        wanted = names_of(rows)
        # The classes' layer must not decide: many names end in that of the first row.
        first = next(iter(wanted.values()), "")
        for prefix in _prefixes(first, plain):
            found = {
                row: plain[prefix + name]
                for row, name in wanted.items()
                if prefix + name in plain
            }
            missing = {r: prefix + n for r, n in wanted.items() if r not in found}
            taken = set(found.values())
            unused = tuple(name for name in layers if name not in taken)
            matches.append(Match(naming, prefix, found, missing, unused))
    best = max(matches, key=lambda found: len(found.found))
    rivals = {
        other.prefix: None
        for other in matches
        if len(other.found) == len(best.found) > 0
        and set(other.found.values()).isdisjoint(best.found.values())
    }
    return best._replace(rivals=tuple(rivals))


def _prefixes(name: str, layers: Mapping[str, str]) -> list[str]:
    """Finds what stands before a name in a file; nothing, too, where it is missing."""
    prefixes = [
        layer.removesuffix(name)
        for layer in layers
        if layer == name or layer.endswith((f".{name}", f"/{name}"))
    ]
    return prefixes or [""]


def _without_slices(name: str) -> str:
    """Gives the layers of a trunk in slices the names that they have in one piece."""
    return re.sub(r"(^|\.)(?:\w+\.)?slice\d+\.", r"\1features.", name)

"""Tables 3 to 6 of arXiv:1409.1556: errors in %, on the ImageNet validation set."""

import dataclasses
from collections.abc import Sequence

Scales = tuple[int, ...]

LETTERS = {
    "vgg11": "A",
    "vgg11_lrn": "A-LRN",
    "vgg13": "B",
    "vgg16_c": "C",
    "vgg16": "D",
    "vgg19": "E",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the paper: its name here, training scales S, test scales Q."""

    model: str
    train_scale: tuple[int, int]
    scales: Scales


@dataclasses.dataclass(frozen=True)
class Row:
    """One or several fused networks under a protocol, and their published errors."""

    networks: tuple[Network, ...]
    protocol: str
    top1_error: float
    top5_error: float
    test_top5_error: float | None = None  # on the test set, whose labels are not public


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    rows: tuple[Row, ...]


FIXED, LARGE, JITTER = (256, 256), (384, 384), (256, 512)
_SEVERAL = {FIXED: (224, 256, 288), LARGE: (352, 384, 416), JITTER: (256, 384, 512)}


def _single(model: str, train_scale: tuple[int, int], top1: float, top5: float) -> Row:
    scale = sum(train_scale) // 2
    return Row((Network(model, train_scale, (scale,)),), "dense", top1, top5)


def _several(*names: tuple[str, tuple[int, int]]) -> tuple[Network, ...]:
    return tuple(Network(model, scale, _SEVERAL[scale]) for model, scale in names)


def _multi(model: str, train_scale: tuple[int, int], top1: float, top5: float) -> Row:
    return Row(_several((model, train_scale)), "dense", top1, top5)


_D, _E = _several(("vgg16", JITTER)), _several(("vgg19", JITTER))
_SEVEN = _several(
    *(("vgg16", FIXED), ("vgg16", LARGE), ("vgg16", JITTER)),
    *(("vgg16_c", FIXED), ("vgg16_c", LARGE)),
    *(("vgg19", FIXED), ("vgg19", LARGE)),
)

TABLES: Sequence[Table] = (
    Table(
        "Table 3: dense at one test scale",
        (
            _single("vgg11", FIXED, 29.6, 10.4),
            _single("vgg11_lrn", FIXED, 29.7, 10.5),
            _single("vgg13", FIXED, 28.7, 9.9),
            _single("vgg16_c", FIXED, 28.1, 9.4),
            _single("vgg16_c", LARGE, 28.1, 9.3),
            _single("vgg16_c", JITTER, 27.3, 8.8),
            _single("vgg16", FIXED, 27.0, 8.8),
            _single("vgg16", LARGE, 26.8, 8.7),
            _single("vgg16", JITTER, 25.6, 8.1),
            _single("vgg19", FIXED, 27.3, 9.0),
            _single("vgg19", LARGE, 26.9, 8.7),
            _single("vgg19", JITTER, 25.5, 8.0),
        ),
    ),
    Table(
        "Table 4: dense at several test scales",
        (
            _multi("vgg13", FIXED, 28.2, 9.6),
            _multi("vgg16_c", FIXED, 27.7, 9.2),
            _multi("vgg16_c", LARGE, 27.8, 9.2),
            _multi("vgg16_c", JITTER, 26.3, 8.2),
            _multi("vgg16", FIXED, 26.6, 8.6),
            _multi("vgg16", LARGE, 26.5, 8.6),
            _multi("vgg16", JITTER, 24.8, 7.5),
            _multi("vgg19", FIXED, 26.9, 8.7),
            _multi("vgg19", LARGE, 26.7, 8.6),
            _multi("vgg19", JITTER, 24.8, 7.5),
        ),
    ),
    Table(
        "Table 5: dense and multi-crop evaluation",
        (
            Row(_D, "dense", 24.8, 7.5),
            Row(_D, "multicrop", 24.6, 7.5),
            Row(_D, "combined", 24.4, 7.2),
            Row(_E, "dense", 24.8, 7.5),
            Row(_E, "multicrop", 24.6, 7.4),
            Row(_E, "combined", 24.4, 7.1),
        ),
    ),
    Table(
        "Table 6: fusion of networks",
        (
            Row(_SEVEN, "dense", 24.7, 7.5, 7.3),
            Row(_D + _E, "dense", 24.0, 7.1, 7.0),
            Row(_D + _E, "multicrop", 23.9, 7.2),
            Row(_D + _E, "combined", 23.7, 6.8, 6.8),
        ),
    ),
)

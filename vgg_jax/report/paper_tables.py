"""Tables 3 to 6 of arXiv:1409.1556, and our own errors beside the published ones.

Errors are in per cent, on the ImageNet validation set.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from vgg_jax.config import Config, VGGConfig
from vgg_jax.evaluation.results import format_train_scale

Json = dict[str, Any]
Cells = dict[str, str | None]  # by the name of the column; None was not run
Scales = tuple[int, ...]

IMAGES = 50_000  # of the ImageNet validation set

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
    """A network of the paper: its name in this project, its S and its test scales Q."""

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


def is_the_papers(config: Config) -> bool:
    """Tells whether a run is on ImageNet and its network one of the paper's."""
    shape = ("num_classes", "width", "head", "fc_features", "fc_kernel", "in_channels")
    layers = ("batch_norm", "lrn")  # None leaves them to the network's name
    return (
        config.data.dataset == "imagenet2012"
        and config.data.crop == 224
        and isinstance(config.model, VGGConfig)
        and all(
            getattr(config.model, field) == getattr(VGGConfig, field)
            for field in (*shape, *layers)
        )
    )


def newest(results: Sequence[Json]) -> list[Json]:
    """Returns the rows of an eval.json that are of the newest step of each run in it.

    A row of several networks is one of them where all are at their newest step.
    """
    steps: dict[str, int] = {}
    for row in results:
        for network in row["networks"]:
            steps[network["run"]] = max(network["step"], steps.get(network["run"], 0))
    return [
        row
        for row in results
        if all(network["step"] == steps[network["run"]] for network in row["networks"])
    ]


def compare(runs: Sequence[Sequence[Json]]) -> dict[str, list[Cells]]:
    """Puts rows of eval.json into the cells of the published tables that they fit.

    Only rows of the whole validation set stand beside the paper, whose errors are of
    all its images. A published row stands there once for each network of ours, or group
    of fused ones, that fits it.

    Args:
        runs: the rows of each run.

    Returns:
        The rows of each table, by its title.
    """
    whole = [row for run in runs for row in run if row["images"] == IMAGES]
    ours: dict[str, dict[str, Json]] = defaultdict(dict)
    # Of rows that differ in the averaging alone the default's is shown.
    for row in sorted(whole, key=lambda row: row["averaging"] == "score_map"):
        ours[_result_key(row)][_network_names(row)] = row
    return {
        table.title: [
            _cells(table, row, own)
            for row in table.rows
            for own in ours[_row_key(row)].values() or (None,)
        ]
        for table in TABLES
    }


def _network_names(row: Json) -> str:
    """Names the runs and steps of a row."""
    return " + ".join(f"{n['run']} at step {n['step']:,}" for n in row["networks"])


def _cells(table: Table, row: Row, ours: Json | None) -> Cells:
    cells: Cells = {
        "network": _join(f"{LETTERS[n.model]} {n.model}" for n in row.networks),
        "train S": _join(format_train_scale(n.train_scale) for n in row.networks),
        "protocol": row.protocol,
        "paper": f"{row.top1_error} / {row.top5_error}",
        "ours": None
        if ours is None
        else f"{percent(ours, 'top1')} / {percent(ours, 'top5')}",
        "our run": "" if ours is None else _network_names(ours),
        "test Q": _join(", ".join(map(str, n.scales)) for n in row.networks),
        "paper, test set": f"- / {row.test_top5_error or '-'}",
    }
    if len({row.protocol for row in table.rows}) == 1:
        del cells["protocol"]
    if all(row.test_top5_error is None for row in table.rows):
        del cells["paper, test set"]
    return cells


def percent(row: Json, name: str) -> str:
    """Formats a row's error, "top1" or "top5", with half of its interval."""
    low, high = row[f"{name}_interval"]
    return f"{100 * row[f'{name}_error']:.2f} ± {50 * (high - low):.2f}"


def _join(texts: Iterator[str]) -> str:
    """Texts about several networks, each of them once."""
    return " + ".join(dict.fromkeys(texts))


def _result_key(row: Json) -> str:
    networks = sorted((n["model"], n["train_scale"]) for n in row["networks"])
    return json.dumps([networks, row["protocol"], sorted(row["scales"])])


def _row_key(row: Row) -> str:
    networks = sorted((n.model, n.train_scale) for n in row.networks)
    scales = sorted({scale for n in row.networks for scale in n.scales})
    return json.dumps([networks, row.protocol, scales])

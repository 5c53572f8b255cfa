"""The tables of arXiv:1409.1556, with our own errors beside the published ones."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vgg_jax.config import Config, VGGConfig
from vgg_jax.evaluation.results import train_scale
from vgg_jax.report import paper_tables as published
from vgg_jax.report.page import escape, table

Json = dict[str, Any]


def is_the_papers(config: Config) -> bool:
    """Whether a run is on ImageNet and its network as large as in the paper."""
    shape = ("num_classes", "width", "head", "fc_features", "fc_kernel", "in_channels")
    return (
        config.data.dataset == "imagenet2012"
        and config.data.crop == 224
        and isinstance(config.model, VGGConfig)
        and all(
            getattr(config.model, field) == getattr(VGGConfig, field) for field in shape
        )
    )


def compare(results: Sequence[Json]) -> Iterator[str]:
    """HTML of the tables, with rows of eval.json in the cells that they fit."""
    yield '<h2 id="paper">Beside the paper</h2>'
    yield (
        '<p class="note">Top-1 / top-5 error in per cent on the ImageNet validation '
        "set: of arXiv:1409.1556, and of these runs where they are of the same "
        "network, training scales S, test scales Q and protocol.</p>"
    )
    # Of rows that differ in the averaging alone the default's is shown.
    last = sorted(results, key=lambda row: row["averaging"] == "score_map")
    ours = {_network_key(row): row for row in last}
    for part in published.TABLES:
        with_protocol = len({row.protocol for row in part.rows}) > 1
        with_test = any(row.test_top5_error is not None for row in part.rows)
        protocol = ("protocol",) if with_protocol else ()
        test_set = ("paper, test set",) if with_test else ()
        yield f"<h3>{escape(part.title)}</h3>"
        yield table(
            ("network", "train S", *protocol, "paper", "ours", "test Q", *test_set),
            [
                (
                    _each(
                        f"{published.LETTERS[n.model]} {n.model}" for n in row.networks
                    ),
                    _each(train_scale(n.train_scale) for n in row.networks),
                    *((row.protocol,) if with_protocol else ()),
                    f"{row.top1_error} / {row.top5_error}",
                    _ours(ours.get(_published_key(row))),
                    _each(", ".join(map(str, n.scales)) for n in row.networks),
                    *((f"- / {row.test_top5_error or '-'}",) if with_test else ()),
                )
                for row in part.rows
            ],
            numbers=("paper", "ours", *test_set),
            wrap=("network", "train S", "test Q"),
        )


def _each(texts: Iterator[str]) -> str:
    """What is said of several networks, once where it is the same."""
    return " + ".join(dict.fromkeys(texts))


def _ours(row: Json | None) -> str | None:
    return None if row is None else f"{percent(row, 'top1')} / {percent(row, 'top5')}"


def _network_key(row: Json) -> str:
    networks = sorted((n["model"], n["train_scale"]) for n in row["networks"])
    return json.dumps([networks, row["protocol"], sorted(row["scales"])])


def _published_key(row: published.Row) -> str:
    networks = sorted((n.model, n.train_scale) for n in row.networks)
    scales = sorted({scale for n in row.networks for scale in n.scales})
    return json.dumps([networks, row.protocol, scales])


def percent(row: Json, name: str) -> str:
    """An error of a row of eval.json, "top1" or "top5", with half its interval."""
    low, high = row[f"{name}_interval"]
    return f"{100 * row[f'{name}_error']:.2f} ± {50 * (high - low):.2f}"

"""Writes the results of an evaluation as a table and as eval.json."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from etils.epath import Path

from vgg_jax.evaluation.predictions import (
    ClassResult,
    Predictions,
    Rate,
    per_class,
    top_k_error,
)
from vgg_jax.files import read_json, write_json, write_text

VERSION = 2  # the version of the layout of eval.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """Which weights were evaluated.

    Args:
        run: the name of the run's folder.
        model: the name of the network.
        step: the training step that the weights are of.
        train_scale: the interval that the short side S was drawn from, in pixels.
    """

    run: str
    model: str
    step: int
    train_scale: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table: one or several networks under one protocol.

    Args:
        networks: the networks whose posteriors were averaged.
        protocol: a key of `protocols.PROTOCOLS`.
        scales: short sides Q, in pixels.
        averaging: "score_map" or "posteriors", see `inference.forward.Posteriors`.
        dataset, data_dir: the data set and its folder.
        top1_error, top5_error: the errors with their intervals.
        per_class: the errors of each class.
        skipped: names of the images that could not be read.
    """

    networks: tuple[TrainedNetwork, ...]
    protocol: str
    scales: tuple[int, ...]
    averaging: str
    dataset: str
    data_dir: str
    top1_error: Rate
    top5_error: Rate
    per_class: tuple[ClassResult, ...]
    skipped: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images were evaluated."""
        return self.top1_error.count


def make_result(
    predictions: Predictions,
    *,
    networks: Sequence[TrainedNetwork],
    protocol: str,
    scales: Sequence[int],
    averaging: str,
    dataset: str,
    data_dir: str,
    class_names: Sequence[str],
    skipped: Sequence[str],
) -> Result:
    """Counts the errors of a set of predictions, and notes where they are from.

    Raises:
        ValueError: no image was evaluated.
    """
    return Result(
        networks=tuple(networks),
        protocol=protocol,
        scales=tuple(scales),
        averaging=averaging,
        dataset=dataset,
        data_dir=data_dir,
        top1_error=top_k_error(predictions, 1),
        top5_error=top_k_error(predictions, 5),
        per_class=per_class(predictions, class_names),
        skipped=tuple(skipped),
    )


def format_table(results: Sequence[Result]) -> str:
    """Formats results as a table like the paper's Tables 3 to 7, a line a result."""
    header = (
        "network",
        "step",
        "protocol",
        "train S",
        "test Q",
        "images",
        "top-1 error %",
        "top-5 error %",
    )
    body = [
        (
            " + ".join(network.run for network in result.networks),
            " + ".join(f"{network.step:,}" for network in result.networks),
            result.protocol
            + (", mean of posteriors" if result.averaging == "posteriors" else ""),
            _train_scales(result.networks),
            ", ".join(map(str, result.scales)),
            f"{result.images:,}",
            _percent(result.top1_error),
            _percent(result.top5_error),
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    right = {"images", "top-1 error %", "top-5 error %"}

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, cells, widths, strict=True)
        ).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join(
        [
            line(header),
            rule,
            *map(line, body),
            rule,
            "+-: half of the 95% interval (Wilson)",
        ]
    )


def row_title(result: Result) -> str:
    """Describes a row in words, such as "vgg16: dense at Q = 256, 384"."""
    networks = " + ".join(network.run for network in result.networks)
    scales = ", ".join(map(str, result.scales))
    return f"{networks}: {result.protocol} at Q = {scales}"


def write_per_class(path: Path, rows: Sequence[ClassResult]) -> None:
    """Writes errors of classes as CSV: an error is a fraction, empty without images."""
    text = io.StringIO()
    fields = [field.name for field in dataclasses.fields(ClassResult)]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, rows))
    write_text(path, text.getvalue())


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Adds results to an eval.json, whole or not at all.

    A result takes the place of one of the same networks, steps, protocol, scales,
    averaging, data set, folder and number of images; others stay. Errors are fractions
    in [0, 1].

    Raises:
        ValueError: the file is not an eval.json of this layout.
    """
    rows = {_key(row): row for row in read_results(path)}
    for result in results:
        row = _as_json(result)
        rows[_key(row)] = row
    record = {"version": VERSION, "results": list(rows.values())}
    write_json(path, record)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of an eval.json; none where there is no file.

    Raises:
        ValueError: the file is not an eval.json of this layout.
    """
    if not path.exists():
        return []
    try:
        record = read_json(path)
        if record["version"] == VERSION and all(map(_is_row, record["results"])):
            return record["results"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"expected {path} to hold results in layout {VERSION}, as this program writes "
        "them; move it away and run eval.py, which writes it anew"
    )


def _as_json(result: Result) -> dict[str, Any]:
    """Returns a result as a row of eval.json."""
    top1, top5 = result.top1_error, result.top5_error
    row = {
        "networks": [dataclasses.asdict(network) for network in result.networks],
        "protocol": result.protocol,
        "scales": result.scales,
        "averaging": result.averaging,
        "dataset": result.dataset,
        "data_dir": result.data_dir,
        "images": result.images,
        "skipped": result.skipped,
        "top1_error": top1.value,
        "top1_interval": (top1.low, top1.high),
        "top5_error": top5.value,
        "top5_interval": (top5.low, top5.high),
        "per_class": [dataclasses.asdict(row) for row in result.per_class],
    }
    return json.loads(json.dumps(row))  # as it is read back: tuples are lists


def _is_row(row: dict[str, Any]) -> bool:
    """Returns whether a value is a row of eval.json; raises what leads elsewhere."""
    named = [row["protocol"], row["averaging"], *row["skipped"]]
    named += [network[key] for network in row["networks"] for key in ("run", "model")]
    numbers = [row["images"], *row["scales"], *row["top1_interval"]]
    numbers += [row["top1_error"], row["top5_error"], *row["top5_interval"]]
    for network in row["networks"]:
        low, high = network["train_scale"]
        numbers += [network["step"], low, high]
    return all(isinstance(name, str) for name in named) and min(numbers) >= 0


def _key(row: dict[str, Any]) -> str:
    """Returns what tells a row of eval.json from the others."""
    networks = [(n["run"], n["step"]) for n in row["networks"]]
    fields = ("protocol", "scales", "averaging", "dataset", "data_dir")
    images = row["images"] + len(row["skipped"])
    return json.dumps([networks, *(row[field] for field in fields), images])


def _train_scales(networks: Sequence[TrainedNetwork]) -> str:
    scales = dict.fromkeys(network.train_scale for network in networks)
    return ", ".join(map(format_train_scale, scales))


def format_train_scale(scale: Sequence[int]) -> str:
    """Formats S, or the interval that it is drawn from, as the paper writes it."""
    low, high = scale
    return f"{low}" if low == high else f"[{low}; {high}]"


def _percent(error: Rate) -> str:
    return f"{100 * error.value:.2f} +- {100 * error.half_width:.2f}"

"""Writes one HTML page about runs.

  python -m vgg_jax.report --workdir DIR [--workdir DIR]

Results, curves, examples with heat maps, the most confident mistakes, the confusion
matrix and the classes one by one; runs on ImageNet stand beside the paper's tables. The
page needs no other file and no network. It shows what eval.py left in the workdirs, and
runs nothing.
"""

import argparse
import base64
import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import jinja2
import numpy as np
from etils.epath import Path
from matplotlib.figure import Figure

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.console import short_names
from vgg_jax.evaluation.predictions import class_results
from vgg_jax.evaluation.protocols import PROTOCOLS
from vgg_jax.evaluation.results import format_train_scale, read_results
from vgg_jax.files import resolve, write_text
from vgg_jax.report.confusion import draw_confusion, read_csv
from vgg_jax.report.figures import Lines, curves, read_metrics
from vgg_jax.report.gallery import Gallery, load_gallery
from vgg_jax.report.heat import enlarge, explain, overlay
from vgg_jax.report.paper_tables import (
    Json,
    compare,
    is_the_papers,
    newest,
    percent,
)
from vgg_jax.training.workdir.facts import read_config

CONFUSIONS = 10  # pairs of classes that are listed
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("vgg_jax", "report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a workdir holds; None or empty for what is not there yet.

    Args:
        name: of the workdir.
        config: the run's settings.
        results: rows of eval.json.
        metrics: lines of metrics.jsonl.
        gallery: examples with their heat maps.
        confusion: counts [C, C] and the names of the classes.
    """

    name: str
    config: Config
    results: list[Json]
    metrics: Lines
    gallery: Gallery | None
    confusion: tuple[np.ndarray, tuple[str, ...]] | None


def read_run(workdir: Path, name: str) -> Run:
    """Reads the files of a run.

    Raises:
        FileNotFoundError: there is no run in `workdir`.
        OSError: a file cannot be read; the message names it and says what to do.
        ValueError: a file is damaged; the message names it and says what to do.
    """
    gallery, confusion = workdir / "examples.npz", workdir / "confusion.csv"
    metrics = workdir / "metrics.jsonl"
    config = read_config(workdir)
    try:
        return Run(
            name=name,
            config=config,
            results=read_results(workdir / "eval.json"),
            metrics=read_metrics(metrics) if metrics.exists() else [],
            gallery=load_gallery(gallery) if gallery.exists() else None,
            confusion=read_csv(confusion) if confusion.exists() else None,
        )
    except OSError as error:
        if error.errno is None:  # its message says all
            raise
        raise OSError(
            f"cannot read {error.filename} ({error.strerror}); make it a file that you "
            "may read, or move it away and run eval.py"
        ) from error


def make_report(runs: Sequence[Run]) -> str:
    """Renders the page of runs."""
    on_imagenet = any(run.config.data.dataset == "imagenet2012" for run in runs)
    like_the_paper = [run for run in runs if is_the_papers(run.config)]
    return TEMPLATES.get_template("template.html").render(
        title="Evaluation: " + ", ".join(run.name for run in runs),
        results=result_rows(runs),
        protocols=protocols_of(runs),
        runs=[describe_run(run) for run in runs],
        paper=compare([newest(run.results) for run in like_the_paper])
        if on_imagenet
        else {},
    )


def result_rows(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """Makes the rows of the results table, one for each different row of eval.json.

    The folder stands beside a data set of which several folders were evaluated.
    """
    rows = {json.dumps(row): row for run in runs for row in run.results}.values()
    folders = defaultdict(set)
    for row in rows:
        folders[row["dataset"]].add(row["data_dir"])

    def data(row: Json) -> str:
        several = len(folders[row["dataset"]]) > 1
        return row["dataset"] + (f" in {row['data_dir']}" if several else "")

    return [
        {
            "network": " + ".join(network["run"] for network in row["networks"]),
            "step": " + ".join(f"{network['step']:,}" for network in row["networks"]),
            "protocol": row["protocol"]
            + (", mean of posteriors" if row["averaging"] == "posteriors" else ""),
            "top-1 error %": percent(row, "top1"),
            "top-5 error %": percent(row, "top5"),
            "test Q": ", ".join(map(str, row["scales"])),
            "train S": ", ".join(
                dict.fromkeys(
                    format_train_scale(n["train_scale"]) for n in row["networks"]
                )
            ),
            "images": f"{row['images']:,}",
            "data": data(row),
        }
        for row in rows
    ]


def protocols_of(runs: Sequence[Run]) -> Mapping[str, str]:
    """Descriptions of the protocols in the results, and of those that they combine."""
    used = {row["protocol"] for run in runs for row in run.results}
    used |= {part for name in used & PROTOCOLS.keys() for part in PROTOCOLS[name].parts}
    return {
        name: protocol.description
        for name, protocol in PROTOCOLS.items()
        if name in used
    }


def describe_run(run: Run) -> Mapping[str, Any]:
    """Prepares a run's section of the page; None or empty for what it does not have."""
    data = run.config.data
    section: dict[str, Any] = {
        "name": run.name,
        "model": run.config.model.name,
        "dataset": data.dataset,
        "num_classes": run.config.model.num_classes,
        "crop": data.crop,
        "train_scale": format_train_scale((data.scale_min, data.scale_max)),
        "details": None,
        "curves": run.metrics and svg(curves(run.metrics, (5.2, 6.6))),
        "confusion": None,
        "mistakes": [],
        "classes": [],
        "right": [],
        "wrong": [],
        "heat_note": None,
    }
    if run.confusion:
        section["confusion"] = svg(draw_confusion(*run.confusion, side=5.2))
        section["mistakes"] = mistake_rows(*run.confusion)
        section["classes"] = class_rows(*run.confusion)
    if run.gallery:
        section["details"] = run.confusion and run.gallery.title
        section["heat_note"] = explain(run.gallery.maps[0], run.gallery.crop)
        for card in cards(run.gallery):
            kind = "right" if card["true"] == card["predicted"] else "wrong"
            section[kind].append(card)
    return section


def cards(gallery: Gallery) -> Iterator[Mapping[str, str]]:
    """Makes the picture, heat map and texts of each example."""
    for example, name, heat in zip(
        gallery.examples, gallery.names, gallery.maps, strict=True
    ):
        shown = enlarge(heat)
        yield {
            "image": jpeg(shown.image),
            "heat": jpeg(overlay(shown)),
            "predicted": gallery.class_names[example.predicted],
            "true": gallery.class_names[example.label],
            "posterior": f"{example.posterior:.1%}",
            "name": Path(name).name,
        }


def mistake_rows(matrix: np.ndarray, names: Sequence[str]) -> list[Mapping[str, str]]:
    """Makes the rows of the pairs of classes that are mistaken most often.

    Args:
        matrix: counts [C, C]; a row is a true class.
        names: C names of the classes.
    """
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(i), len(names)) for i in order]
    return [
        {
            "is": names[true],
            "taken for": names[predicted],
            "images": f"{wrong[true, predicted]:,}",
            "of its class %": (
                f"{100 * wrong[true, predicted] / matrix[true].sum():.1f}"
            ),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def class_rows(matrix: np.ndarray, names: Sequence[str]) -> list[Mapping[str, str]]:
    """Makes the rows of the classes, the worst first; arguments as `mistake_rows`."""
    results = class_results(matrix, names)
    return [
        {
            "class": result.name,
            "images": f"{result.images:,}",
            "top-1 error %": "no images"
            if result.top1_error is None
            else f"{100 * result.top1_error:.1f}",
            "mostly taken for": result.mistaken_for or "",
        }
        for result in sorted(results, key=lambda result: -(result.top1_error or 0))
    ]


def svg(figure: Figure) -> str:
    """Encodes a figure as the data URI of an SVG."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", data.getvalue())


def jpeg(pixels: np.ndarray) -> str:
    """Encodes an image uint8 [H, W, 1 or 3] as the data URI of a JPEG."""
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return _data_uri("image/jpeg", data.tobytes())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.report", __doc__)
    parser.add_workdir("folder of a run; several are set side by side", several=True)
    parser.add_argument(
        "--output",
        type=cli.path,
        metavar="FILE",
        help="the page; by default report.html in the first workdir",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Writes the page; returns 0."""
    write_page(values.workdir, values.output or values.workdir[0] / "report.html")
    return cli.DONE


def write_page(workdirs: Sequence[Path], output: Path) -> None:
    """Writes the page of some runs, and prints where it is.

    Raises:
        FileNotFoundError: a folder has no run.
    """
    paths = [resolve(path) for path in workdirs]
    runs = [read_run(*pair) for pair in zip(paths, short_names(paths), strict=True)]
    text = make_report(runs)
    write_text(output, text)
    print(f"{output}  {len(text) / 2**20:.1f} MiB")


if __name__ == "__main__":
    raise SystemExit(main())

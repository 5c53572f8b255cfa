"""One HTML page of runs: python -m vgg_jax.report WORKDIR...

Results beside those of the paper, curves, examples with class score maps, the most
confident mistakes, the confusion matrix and the classes one by one. The page needs no
other file and no network. It shows what eval.py left in the workdirs, and runs nothing.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vgg_jax.config import Config
from vgg_jax.console import short_names
from vgg_jax.evaluation.errors import class_results
from vgg_jax.evaluation.protocols import PROTOCOLS
from vgg_jax.evaluation.results import read_json, train_scale
from vgg_jax.files import write_text
from vgg_jax.report.comparison import Json, compare, is_the_papers, percent
from vgg_jax.report.confusion import draw_confusion, read_csv
from vgg_jax.report.figures import Lines, curves, read_metrics
from vgg_jax.report.gallery import Example, Gallery, load_gallery
from vgg_jax.report.heat import ScoreMap, overlay
from vgg_jax.report.page import drawing, escape, page, photograph, table
from vgg_jax.training.workdir import read_config

CONFUSIONS = 10  # pairs of classes that are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a workdir holds; None or empty for what is not there yet."""

    name: str
    config: Config
    results: list[Json]  # rows of eval.json
    metrics: Lines
    gallery: Gallery | None
    confusion: tuple[np.ndarray, tuple[str, ...]] | None


def read_run(workdir: Path, name: str) -> Run:
    """The files of a run.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a file of another layout.
    """
    gallery, confusion = workdir / "examples.npz", workdir / "confusion.csv"
    metrics = workdir / "metrics.jsonl"
    return Run(
        name=name,
        config=read_config(workdir),
        results=read_json(workdir / "eval.json"),
        metrics=read_metrics(metrics) if metrics.exists() else [],
        gallery=load_gallery(gallery) if gallery.exists() else None,
        confusion=read_csv(confusion) if confusion.exists() else None,
    )


def make_report(runs: Sequence[Run]) -> str:
    """The page."""
    links = [
        ("results", "Results"),
        *((f"run{i}", run.name) for i, run in enumerate(runs)),
        ("paper", "Beside the paper"),
    ]
    body = [
        "<h1>Evaluation of VGG and Network in Network</h1>",
        '<p class="note">Errors are of images that no training and no choice of a '
        "checkpoint has seen; ± is half of the 95% interval (Wilson).</p>",
        "<nav>"
        + "".join(f'<a href="#{at}">{escape(text)}</a>' for at, text in links)
        + "</nav>",
        *_results(runs),
    ]
    for i, run in enumerate(runs):
        body.append(f'<h2 id="run{i}">{escape(run.name)}</h2>')
        body += _run(run)
    body += compare(
        [row for run in runs if is_the_papers(run.config) for row in run.results]
    )
    return page("Evaluation: " + ", ".join(run.name for run in runs), body)


def _results(runs: Sequence[Run]) -> Iterator[str]:
    yield '<h2 id="results">Results</h2>'
    rows = {
        json.dumps(row): (
            " + ".join(network["run"] for network in row["networks"]),
            row["protocol"]
            + (", mean of posteriors" if row["averaging"] == "posteriors" else ""),
            percent(row, "top1"),
            percent(row, "top5"),
            ", ".join(map(str, row["scales"])),
            ", ".join(
                dict.fromkeys(train_scale(n["train_scale"]) for n in row["networks"])
            ),
            f"{row['images']:,}",
            run.config.data.dataset,
        )
        for run in runs
        for row in run.results
    }
    if not rows:
        yield '<p class="none">Not evaluated yet: run eval.py.</p>'
        return
    errors = ("top-1 error %", "top-5 error %")
    header = ("network", "protocol", *errors, "test Q", "train S", "images", "data")
    yield table(header, rows.values(), numbers=(*errors, "images"))
    used = {row["protocol"] for run in runs for row in run.results}
    used |= {part for name in used & PROTOCOLS.keys() for part in PROTOCOLS[name].parts}
    known = "; ".join(
        f"{name}: {method.description}"
        for name, method in PROTOCOLS.items()
        if name in used
    )
    yield f'<p class="note">{escape(known)}.</p>'


def _run(run: Run) -> Iterator[str]:
    config = run.config
    yield (
        f'<p class="note">{escape(config.model.name)} on '
        f"{escape(config.data.dataset)}, {config.model.num_classes} classes, crops of "
        f"{config.data.crop} pixels at S = "
        f"{train_scale((config.data.scale_min, config.data.scale_max))}.</p>"
    )
    if run.gallery is None or run.confusion is None:
        yield (
            '<p class="none">No confusion matrix and no examples here: eval.py writes '
            "them into the first workdir that it is given.</p>"
        )
    else:
        yield (
            '<p class="note">Confusion matrix, examples and classes: '
            f"{escape(run.gallery.title)}.</p>"
        )
    yield '<div class="columns">'
    if run.metrics:
        yield "<div><h3>Training</h3>" + drawing(
            curves(run.metrics, (5.2, 6.6)), "loss, top-1 error and rate by epoch"
        ) + "</div>"  # fmt: skip
    if run.confusion:
        yield "<div><h3>Confusion matrix</h3>" + drawing(
            draw_confusion(*run.confusion), "images by true and predicted class", "wide"
        ) + "</div>"  # fmt: skip
    yield "</div>"
    if run.gallery:
        yield from _examples(run.gallery)
    if run.confusion:
        yield from _classes(*run.confusion)


def _examples(gallery: Gallery) -> Iterator[str]:
    cards: dict[str, list[str]] = {"wrong": [], "right": []}
    for shown in zip(gallery.examples, gallery.names, gallery.maps, strict=True):
        kind = "right" if shown[0].label == shown[0].predicted else "wrong"
        cards[kind].append(_card(gallery, kind, *shown))
    for kind, title in (
        ("wrong", "The most confident mistakes"),
        ("right", "Right answers"),
    ):
        if cards[kind]:
            yield f"<h3>{title}</h3>"
            yield f'<div class="cards">{"".join(cards[kind])}</div>'
    height, width = gallery.maps[0].scores.shape
    side = gallery.maps[0].image.shape[0]
    yield (
        '<p class="note">Beside each picture: the scores of the predicted class, '
        f"{height} x {width} cells, of the network on the center square at {side} "
        "pixels; dark is the lowest score of a picture, bright its highest.</p>"
    )


def _card(
    gallery: Gallery, kind: str, example: Example, name: str, found: ScoreMap
) -> str:
    predicted = gallery.class_names[example.predicted]
    true = gallery.class_names[example.label]
    truth = "" if kind == "right" else f"<br>is {escape(true)}"
    pair = photograph(found.image, true) + photograph(
        overlay(found), f"where {predicted} is seen"
    )
    return (
        f'<figure class="{kind}"><div class="pair">{pair}</div><figcaption>'
        f"<b>{escape(predicted)}</b> {example.posterior:.1%}{truth}"
        f"<small>{escape(Path(name).name)}</small></figcaption></figure>"
    )


def _classes(matrix: np.ndarray, names: tuple[str, ...]) -> Iterator[str]:
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    yield '<div class="columns"><div><h3>Most frequent mistakes</h3>'
    yield table(
        ("is", "taken for", "images", "of its class %"),
        [
            (
                names[t],
                names[p],
                wrong[t, p],
                f"{100 * wrong[t, p] / matrix[t].sum():.1f}",
            )
            for t, p in pairs
            if wrong[t, p]
        ],
        numbers=("images", "of its class %"),
    )
    yield "</div><div><h3>Classes, worst first</h3>"
    rows = sorted(class_results(matrix, names), key=lambda row: -(row.top1_error or 0))
    yield table(
        ("class", "images", "top-1 error %", "mostly taken for"),
        [
            (
                row.name,
                row.images,
                "no images"
                if row.top1_error is None
                else f"{100 * row.top1_error:.1f}",
                row.mistaken_for or "",
            )
            for row in rows
        ],
        numbers=("images", "top-1 error %"),
    )
    yield "</div></div>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 1 after an error's one line."""
    parser = argparse.ArgumentParser(
        prog="python -m vgg_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument(
        "--output", type=Path, help="the page; by default report.html in the first"
    )
    values = parser.parse_args(arguments)
    output = values.output or values.workdirs[0] / "report.html"
    try:
        paths = [path.resolve() for path in values.workdirs]
        runs = [read_run(*pair) for pair in zip(paths, short_names(paths), strict=True)]
        text = make_report(runs)
        write_text(output, text)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{output}  {len(text) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

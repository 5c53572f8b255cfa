"""The page of runs: well-formed, whole, escaped, and the paper's tables in it."""

import dataclasses
import html.parser
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.evaluation.errors import Rate
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.results import (
    Result,
    TrainedNetwork,
    make_result,
    read_json,
    write_json,
)
from vgg_jax.report import __main__ as report
from vgg_jax.report import paper_tables
from vgg_jax.report.artifacts import write_details
from vgg_jax.report.comparison import compare, is_the_papers
from vgg_jax.training.workdir import claim

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Elements closed in order, their texts, their links and images."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def result(
    models: tuple[str, ...],
    protocol: str,
    scales: tuple[int, ...],
    train_scale: tuple[int, int] = (256, 512),
    top1: float = 0.2512,
) -> Result:
    return Result(
        networks=tuple(
            TrainedNetwork(
                run=f"{m} at {train_scale}", model=m, step=1, train_scale=train_scale
            )
            for m in models
        ),
        protocol=protocol,
        scales=scales,
        averaging="score_map",
        top1_error=Rate(top1, top1 - 0.003, top1 + 0.005, 50_000),
        top5_error=Rate(0.0777, 0.076, 0.08, 50_000),
        per_class=(),
        skipped=(),
    )


@pytest.fixture
def workdir(
    model: object, config: Config, make_source: Callable, tmp_path: Path
) -> Path:
    """A run that was trained and evaluated, with names that are not HTML."""
    folder = tmp_path / "a <run> & more"
    claim(folder, config)
    lines = [
        {"step": i, "epoch": i, "train_loss": 1.0, "train_top1_error": 0.5}
        for i in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    source = make_source([(40, 56), (48, 48)] * 6)
    source.class_names = ("<b>bold", "T-shirt & top", *"abcde")
    posteriors = np.random.default_rng(0).dirichlet(np.ones(7), 12).astype(np.float32)
    predictions = Predictions(
        posteriors=posteriors,
        labels=np.array(source.labels, np.int32),
        weights=np.ones(12, np.float32),
    )
    found = make_result(
        predictions,
        networks=[
            TrainedNetwork(run=folder.name, model="vgg11", step=3, train_scale=(32, 64))
        ],
        protocol="dense",
        scales=(32, 48),
        averaging="score_map",
        class_names=source.class_names,
        skipped=(),
    )
    write_json(folder / "eval.json", [found])
    write_details(folder, model, source, config, found, predictions)
    return folder


def test_the_page_has_everything_and_needs_nothing(
    workdir: Path, capsys: pytest.CaptureFixture
) -> None:
    assert report.main([str(workdir)]) == 0
    output = workdir / "report.html"
    assert str(output) in capsys.readouterr().out
    text = output.read_text()
    found = Page(text)
    whole = " ".join(found.texts)
    # Names are text, not elements.
    assert "a <run> & more" in whole and "<b>bold" in whole and "T-shirt & top" in whole
    assert "<run>" not in text and "<b>bold" not in text
    # Nothing is fetched: images are inside, links stay in the page.
    assert all(source.startswith("data:image/") for source in found.sources)
    assert all(link.removeprefix("#") in found.ids for link in found.links)
    assert "http" not in text and "url(" not in text
    kinds = [source.partition(";")[0] for source in found.sources]
    assert kinds.count("data:image/svg+xml") == 2  # curves, confusion matrix
    assert kinds.count("data:image/jpeg") == 2 * 12
    (row,) = read_json(workdir / "eval.json")
    assert "classes: a <run> & more: dense at Q = 32, 48." in whole
    assert "No confusion matrix" not in whole
    top1 = f"{100 * row['top1_error']:.2f}"
    assert any(
        cells[:2] == ["a <run> & more", "dense"]
        and cells[2].startswith(top1)
        and cells[4:] == ["32, 48", "[32; 64]", "12", "folder"]
        for cells in found.rows
    )
    for title in (
        *("The most confident mistakes", "Right answers", "Confusion matrix"),
        *("Most frequent mistakes", "Classes, worst first", "Training"),
    ):
        assert title in whole
    # A phone is not given the width of a desk.
    assert 'name="viewport" content="width=device-width' in text
    assert "mean over the" not in text


def test_classes_worst_first_and_mistakes_most_frequent_first() -> None:
    matrix = np.array([[8, 2, 0], [4, 5, 1], [0, 0, 0]])
    found = Page("".join(report._classes(matrix, ("a", "b", "c"))))
    assert found.rows == [
        ["is", "taken for", "images", "of its class %"],
        ["b", "a", "4", "40.0"],
        ["a", "b", "2", "20.0"],
        ["b", "c", "1", "10.0"],
        ["class", "images", "top-1 error %", "mostly taken for"],
        ["b", "10", "50.0", "a"],
        ["a", "10", "20.0", "b"],
        ["c", "0", "no images", ""],
    ]


def test_a_run_without_an_evaluation_says_so(tmp_path: Path, config: Config) -> None:
    claim(tmp_path / "new", config)
    text = report.make_report([report.read_run(tmp_path / "new", "new")])
    texts = Page(text).texts
    assert texts.count("Not evaluated yet: run eval.py.") == 1
    assert sum("first workdir that it is given" in text for text in texts) == 1


def test_errors_are_one_line(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for arguments, message in (
        ([tmp_path / "nowhere"], "no run in"),
        ([workdir, workdir], "same one twice"),
        ([workdir, "--output", tmp_path / "no" / "x.html"], "x.html"),
    ):
        assert report.main([str(a) for a in arguments]) == 1
        assert message in capsys.readouterr().err
    (workdir / "examples.npz").write_bytes(b"torn")
    assert report.main([str(workdir)]) == 1
    assert "examples.npz" in capsys.readouterr().err


def rows_of(results: list[Result], tmp_path: Path) -> list[list[str]]:
    write_json(tmp_path / "eval.json", results)
    return Page("".join(compare(read_json(tmp_path / "eval.json")))).rows


def test_cells_of_the_paper_that_were_run(tmp_path: Path) -> None:
    found = rows_of(
        [
            result(("vgg16",), "dense", (384,)),
            dataclasses.replace(
                result(("vgg16",), "dense", (384,), top1=0.99), averaging="posteriors"
            ),
            result(("vgg16",), "dense", (384,), (384, 384), top1=0.26),
            result(("vgg19", "vgg16"), "combined", (256, 384, 512), top1=0.23),
            result(("vgg16",), "center", (256,), top1=0.99),  # not in these tables
            result(("vgg16",), "dense", (256,), top1=0.99),  # S = [256; 512] at 256
        ],
        tmp_path,
    )
    # Without a protocol where all of a table is dense.
    rows = [row if len(row) > 5 else [*row[:2], "dense", *row[2:]] for row in found]
    ours = {
        (*row[:3], row[5]): row[3:5]
        for row in rows
        if row[0] != "network" and row[4] != "not run"
    }
    assert ours == {
        ("D vgg16", "[256; 512]", "dense", "384"): [
            *("25.6 / 8.1", "25.12 ± 0.40 / 7.77 ± 0.20")
        ],
        ("D vgg16", "384", "dense", "384"): [
            *("26.8 / 8.7", "26.00 ± 0.40 / 7.77 ± 0.20")
        ],
        ("D vgg16 + E vgg19", "[256; 512]", "combined", "256, 384, 512"): [
            *("23.7 / 6.8", "23.00 ± 0.40 / 7.77 ± 0.20")
        ],
    }
    assert sum(row[4] == "not run" for row in rows) == 12 + 10 + 6 + 4 - 3
    assert [row[6] for row in found if len(row) == 7] == [
        *("paper, test set", "- / 7.3", "- / 7.0", "- / -", "- / 6.8")
    ]


def test_the_published_tables() -> None:
    """Figures at the corners of Tables 3 to 6."""
    three, four, five, six = paper_tables.TABLES
    assert [len(table.rows) for table in paper_tables.TABLES] == [12, 10, 6, 4]
    first, last = three.rows[0], three.rows[-1]
    assert (first.top1_error, first.top5_error) == (29.6, 10.4)
    assert first.networks[0].scales == (256,)
    assert (last.top1_error, last.top5_error) == (25.5, 8.0)
    assert last.networks[0].scales == (384,)
    assert (four.rows[0].top1_error, four.rows[-1].top5_error) == (28.2, 7.5)
    assert [r.protocol for r in five.rows[:3]] == ["dense", "multicrop", "combined"]
    assert (five.rows[-1].top1_error, five.rows[-1].top5_error) == (24.4, 7.1)
    assert len(six.rows[0].networks) == 7
    assert dataclasses.astuple(six.rows[-1])[1:] == ("combined", 23.7, 6.8, 6.8)
    for table in paper_tables.TABLES:
        keys = [(row.networks, row.protocol) for row in table.rows]
        assert len(set(keys)) == len(keys)
        for row in table.rows:
            assert row.top5_error < row.top1_error


def test_only_runs_like_the_papers_stand_beside_it() -> None:
    config = Config(
        model=VGGConfig(name="vgg16"), data=DataConfig(dataset="imagenet2012")
    )
    assert is_the_papers(config)
    for model, data in (
        ({"width": 0.5}, {}),
        ({"head": "global_pool"}, {}),
        ({}, {"dataset": "folder"}),
        ({}, {"crop": 192}),
    ):
        other = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, **model),
            data=dataclasses.replace(config.data, **data),
        )
        assert not is_the_papers(other)


def test_examples_are_shown_as_they_are(workdir: Path) -> None:
    """Each card's first picture is the image that the network was given."""
    import base64

    found = Page(report.make_report([report.read_run(workdir, "x")]))
    jpegs = [s for s in found.sources if s.startswith("data:image/jpeg")]
    data = np.frombuffer(base64.b64decode(jpegs[0].partition(",")[2]), np.uint8)
    shown = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    gallery = report.load_gallery(workdir / "examples.npz")
    wrong = [
        found.image
        for example, found in zip(gallery.examples, gallery.maps, strict=True)
        if example.label != example.predicted
    ]
    assert np.abs(shown.astype(int) - wrong[0]).mean() < 12
    assert np.abs(shown.astype(int) - wrong[1]).mean() > 24

"""The page of runs: well-formed, whole, escaped, and the paper's tables in it."""

import base64
import dataclasses
import functools
import html.parser
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import jinja2
import numpy as np
import pytest

from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.evaluation.evaluate import Evaluation
from vgg_jax.evaluation.predictions import Predictions, Rate
from vgg_jax.evaluation.results import (
    Result,
    TrainedNetwork,
    make_result,
    read_results,
    write_results,
)
from vgg_jax.report import __main__ as report
from vgg_jax.report import paper_tables
from vgg_jax.report.artifacts import write_artifacts
from vgg_jax.report.gallery import Example, Gallery, load_gallery
from vgg_jax.report.heat import HeatMap, enlarge
from vgg_jax.report.paper_tables import Json, compare, is_the_papers, newest
from vgg_jax.training.workdir.facts import claim

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
        self.attributes: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        self.attributes += [f"{name}={value}" for name, value in attrs]
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


def write_page(*arguments: object) -> int:
    """Runs the command as `python -m vgg_jax.report` does; its exit code."""
    return report.main(list(map(str, arguments)))


def result(
    models: tuple[str, ...],
    protocol: str,
    scales: tuple[int, ...],
    train_scale: tuple[int, int] = (256, 512),
    top1: float = 0.2512,
    step: int = 1,
    run: str = "",
    images: int = 50_000,
) -> Result:
    return Result(
        networks=tuple(
            TrainedNetwork(
                run=run or f"{m} at {train_scale}",
                model=m,
                step=step,
                train_scale=train_scale,
            )
            for m in models
        ),
        protocol=protocol,
        scales=scales,
        averaging="score_map",
        dataset="imagenet2012",
        data_dir="/data",
        top1_error=Rate(top1, top1 - 0.003, top1 + 0.005, images),
        top5_error=Rate(0.0777, 0.076, 0.08, images),
        per_class=(),
        skipped=(),
    )


@pytest.fixture
def workdir(
    model: object, config: Config, make_source: Callable, tmp_path: Path
) -> Path:
    """A run that was trained and evaluated, with names that are not HTML."""
    folder = tmp_path / "a <run> & more"
    folder.mkdir()
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
        dataset="folder",
        data_dir="/data",
        class_names=source.class_names,
        skipped=(),
    )
    write_results(folder / "eval.json", [found])
    write_artifacts(
        Evaluation(
            results=[found],
            model=model,
            config=config,
            workdir=folder,
            source=source,
            predictions=predictions,
        )
    )
    return folder


def test_the_page_has_everything_and_needs_nothing(
    workdir: Path, capsys: pytest.CaptureFixture
) -> None:
    assert write_page("--workdir", workdir) == 0
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
    (row,) = read_results(workdir / "eval.json")
    assert "classes: a <run> & more: dense at Q = 32, 48." in whole
    assert "No confusion matrix" not in whole
    top1 = f"{100 * row['top1_error']:.2f}"
    assert any(
        cells[:3] == ["a <run> & more", "3", "dense"]
        and cells[3].startswith(top1)
        and cells[5:] == ["32, 48", "[32; 64]", "12", "folder"]
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
    assert text.startswith("<!DOCTYPE html>")
    # What the heat maps show is said beside them.
    assert "hiding a square of 8 pixels" in " ".join(whole.split())


EVIL = "<script>alert('1')</script> & \"x\" onerror='y'"


@pytest.fixture
def evil(config: Config, tmp_path: Path) -> report.Run:
    """A run whose name, classes, files, data and protocol want to be HTML."""
    names = (EVIL, EVIL + "2")
    image = np.zeros((8, 8, 3), np.uint8)
    heat = HeatMap(image, np.zeros((2, 2), np.float32), (-0.5, 7.5, 7.5, -0.5), 2)
    gallery = Gallery(
        title=EVIL,
        class_names=names,
        crop=8,
        examples=(Example(0, 0, 1, 0.5), Example(1, 1, 1, 0.5)),
        names=(EVIL.replace("/", ""), EVIL.replace("/", "")),
        maps=(heat, heat),
    )
    row = dataclasses.replace(result(("vgg16",), "dense", (256,)), protocol=EVIL)
    write_results(tmp_path / "eval.json", [row])
    (row,) = read_results(tmp_path / "eval.json")
    row["networks"][0]["run"] = row["dataset"] = EVIL
    return report.Run(
        name=EVIL,
        config=dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, name=EVIL),
            data=dataclasses.replace(config.data, dataset=EVIL),
        ),
        results=[row],
        metrics=[],
        gallery=gallery,
        confusion=(np.array([[1, 2], [3, 4]]), names),
    )


def test_text_is_escaped_everywhere(evil: report.Run) -> None:
    text = report.make_report([evil])
    assert "<script" not in text and '"x"' not in text and "'y'" not in text
    page = Page(text)  # no element and no attribute comes from a text
    assert not any(attribute.startswith("onerror") for attribute in page.attributes)
    whole = " ".join(page.texts)
    plain = EVIL.replace("/", "")
    # Title, heading, link, run and data of the row, protocol, model, data, details.
    assert whole.count(EVIL) >= 9 and whole.count(plain) == 2
    assert f"alt={EVIL}" in page.attributes
    assert f"alt=where {EVIL}2 is seen" in page.attributes


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        report.TEMPLATES.get_template("template.html").render(title="x")


def test_classes_worst_first_and_mistakes_most_frequent_first(
    evil: report.Run,
) -> None:
    matrix = np.array([[8, 2, 0], [4, 5, 1], [0, 0, 0]])
    run = dataclasses.replace(
        evil, results=[], gallery=None, confusion=(matrix, ("a", "b", "c"))
    )
    assert Page(report.make_report([run])).rows == [
        ["is", "taken for", "images", "of its class %"],
        ["b", "a", "4", "40.0"],
        ["a", "b", "2", "20.0"],
        ["b", "c", "1", "10.0"],
        ["class", "images", "top-1 error %", "mostly taken for"],
        ["b", "10", "50.0", "a"],
        ["a", "10", "20.0", "b"],
        ["c", "0", "no images", ""],
    ]


def test_a_run_without_mistakes_says_so(evil: report.Run) -> None:
    run = dataclasses.replace(evil, confusion=(np.eye(2, dtype=int), ("a", "b")))
    assert "None." in Page(report.make_report([run])).texts


def at_step(step: int, top1: float) -> Json:
    """A row of eval.json."""
    networks = [{"run": "vgg", "model": "vgg11", "step": step, "train_scale": [32, 32]}]
    return {
        "networks": networks,
        "protocol": "dense",
        "scales": [32],
        "averaging": "score_map",
        "dataset": "folder",
        "data_dir": "/data",
        "images": 10,
        "top1_error": top1,
        "top1_interval": [top1, top1],
        "top5_error": 0.0,
        "top5_interval": [0.0, 0.0],
    }


def test_rows_say_the_step_and_where_they_differ_in_it_the_folder(
    evil: report.Run,
) -> None:
    def rows(*results: Json) -> list[tuple[str, str]]:
        run = dataclasses.replace(evil, results=list(results))
        return [(row["step"], row["data"]) for row in report.result_rows([run])]

    both = [at_step(1000, 0.5), at_step(2000, 0.25)]
    assert rows(*both) == [("1,000", "folder"), ("2,000", "folder")]
    assert rows(both[0], both[1] | {"data_dir": "/other"}) == [
        ("1,000", "folder in /data"),
        ("2,000", "folder in /other"),
    ]


def test_the_papers_tables_stand_beside_runs_on_imagenet_alone(
    evil: report.Run,
) -> None:
    assert "Beside the paper" not in report.make_report([evil])
    config = dataclasses.replace(
        evil.config, data=dataclasses.replace(evil.config.data, dataset="imagenet2012")
    )
    page = Page(report.make_report([evil, dataclasses.replace(evil, config=config)]))
    assert page.texts.count("Beside the paper") == 2 and "paper" in page.ids
    rows = [row for row in page.rows if "not run" in row]
    assert len(rows) == 12 + 10 + 6 + 4


def test_a_run_without_an_evaluation_says_so(tmp_path: Path, config: Config) -> None:
    (tmp_path / "new").mkdir()
    claim(tmp_path / "new", config)
    text = report.make_report([report.read_run(tmp_path / "new", "new")])
    texts = Page(text).texts
    assert texts.count("Not evaluated yet: run eval.py.") == 1
    assert sum("first workdir that it is given" in text for text in texts) == 1


def test_errors_are_one_line(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    this = ("--workdir", workdir)
    for arguments, message in (
        (("--workdir", tmp_path / "nowhere"), "no run in"),
        ((*this, *this), "same one twice"),
        (
            (*this, "--output", tmp_path / "no" / "x.html"),
            "--output: give one that exists, or make its folder",
        ),
    ):
        assert write_page(*arguments) == 1
        assert message in capsys.readouterr().err
    remedies = {
        "examples.npz": "delete it and run eval.py",
        "confusion.csv": "delete it and run eval.py",
        "metrics.jsonl": "remove that line",
        "eval.json": "move it away",
    }
    for name, remedy in remedies.items():
        path = workdir / name
        whole = path.read_bytes()
        path.write_bytes(b"torn\n")
        assert write_page(*this) == 1
        error = capsys.readouterr().err
        assert str(path) in error and remedy in error and error.count("\n") == 1
        path.write_bytes(whole)
    assert write_page(*this) == 0
    capsys.readouterr()
    path.unlink()
    path.mkdir()
    assert write_page(*this) == 1
    error = capsys.readouterr().err
    assert str(path) in error and "make it a file that you may read" in error


def rows_of(results: list[Result], tmp_path: Path) -> list[list[str]]:
    """The paper's tables as lists of cells, with a header each."""
    write_results(tmp_path / "eval.json", results)
    tables = compare([newest(read_results(tmp_path / "eval.json"))])
    return [
        cells
        for rows in tables.values()
        for cells in [
            list(rows[0]),
            *([cell or "not run" for cell in row.values()] for row in rows),
        ]
    ]


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
    rows = [row if len(row) > 6 else [*row[:2], "dense", *row[2:]] for row in found]
    ours = {
        (*row[:3], row[6]): row[3:5]
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
    assert {
        row[5] for row in rows if row[0].startswith("D") and row[4] != "not run"
    } == {
        "vgg16 at (256, 512) at step 1",
        "vgg16 at (384, 384) at step 1",
        "vgg19 at (256, 512) at step 1 + vgg16 at (256, 512) at step 1",
    }
    assert [row[7] for row in found if len(row) == 8] == [
        *("paper, test set", "- / 7.3", "- / 7.0", "- / -", "- / 6.8")
    ]


def test_older_steps_and_parts_of_the_images_are_not_beside_the_paper(
    tmp_path: Path,
) -> None:
    at_384 = functools.partial(result, ("vgg16",), "dense", (384,))
    found = rows_of(
        [
            at_384(top1=0.21, step=90),
            at_384(top1=0.22, step=100),
            at_384(top1=0.23, step=80),
            at_384(top1=0.24, run="another seed", step=70),
            at_384(top1=0.01, step=100, images=500),
            at_384(top1=0.02, run="partial", images=49_999),
            result(("vgg16",), "multicrop", (256, 384, 512), step=90, top1=0.03),
        ],
        tmp_path,
    )
    ours = [
        (row[3], row[4])
        for row in found
        if row[0] != "network" and "not run" not in row
    ]
    assert ours == [
        ("22.00 ± 0.40 / 7.77 ± 0.20", "vgg16 at (256, 512) at step 100"),
        ("24.00 ± 0.40 / 7.77 ± 0.20", "another seed at step 70"),
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
        ({"batch_norm": True}, {}),
        ({"lrn": "caffe"}, {}),
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
    found = Page(report.make_report([report.read_run(workdir, "x")]))
    jpegs = [s for s in found.sources if s.startswith("data:image/jpeg")]
    data = np.frombuffer(base64.b64decode(jpegs[0].partition(",")[2]), np.uint8)
    shown = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    gallery = load_gallery(workdir / "examples.npz")
    wrong = [
        enlarge(heat).image
        for example, heat in zip(gallery.examples, gallery.maps, strict=True)
        if example.label != example.predicted
    ]
    assert np.abs(shown.astype(int) - wrong[0]).mean() < 12
    assert np.abs(shown.astype(int) - wrong[1]).mean() > 24

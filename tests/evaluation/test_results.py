"""The table and eval.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.results import (
    VERSION,
    Result,
    TrainedNetwork,
    format_table,
    make_result,
    read_results,
    write_results,
)


def make(
    protocol: str = "dense",
    scales: tuple[int, ...] = (256, 384, 512),
    averaging: str = "score_map",
    runs: tuple[str, ...] = ("vgg16",),
    step: int = 70,
    wrong: int = 3,
    data_dir: str = "/data",
    images: int = 40,
) -> Result:
    posteriors = np.tile(np.float32([0.6, 0.3, 0.1]), (images, 1))
    labels = np.zeros(images, np.int32)
    labels[:wrong] = 1
    weights = np.ones(images, np.float32)
    weights[-1] = 0
    return make_result(
        Predictions(posteriors=posteriors, labels=labels, weights=weights),
        networks=[
            TrainedNetwork(run=run, model=run, step=step, train_scale=(256, 512))
            for run in runs
        ],
        protocol=protocol,
        scales=scales,
        averaging=averaging,
        dataset="folder",
        data_dir=data_dir,
        class_names=("cat", "dog", "cow"),
        skipped=("broken.png",),
    )


def test_table() -> None:
    fixed = dataclasses.replace(
        make("center", (256,)),
        networks=(TrainedNetwork(run="a", model="a", step=1, train_scale=(256, 256)),),
    )
    both = make(averaging="posteriors", runs=("vgg16", "vgg19"), wrong=0)
    assert format_table([fixed, both]).splitlines() == [
        "network        step     protocol                   train S     test Q       "
        "  images  top-1 error %  top-5 error %",
        "-------------  -------  -------------------------  ----------  -------------"
        "  ------  -------------  -------------",
        "a              1        center                     256         256          "
        "      39   7.69 +- 8.84   0.00 +- 4.48",
        "vgg16 + vgg19  70 + 70  dense, mean of posteriors  [256; 512]  256, 384, 512"
        "      39   0.00 +- 4.48   0.00 +- 4.48",
        "-------------  -------  -------------------------  ----------  -------------"
        "  ------  -------------  -------------",
        "+-: half of the 95% interval (Wilson)",
    ]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_results(path, [make()])
    record = json.loads(path.read_text())
    (row,) = record["results"]
    assert record["version"] == 2
    assert (row["dataset"], row["data_dir"]) == ("folder", "/data")
    assert row["networks"] == [
        {"run": "vgg16", "model": "vgg16", "step": 70, "train_scale": [256, 512]}
    ]
    assert (row["protocol"], row["scales"]) == ("dense", [256, 384, 512])
    assert (row["averaging"], row["images"]) == ("score_map", 39)
    assert row["skipped"] == ["broken.png"]
    assert row["top1_error"] == pytest.approx(3 / 39)
    low, high = row["top1_interval"]
    assert 0 < low < 3 / 39 < high < 1
    assert row["top5_error"] == row["top5_interval"][0] == 0
    assert row["per_class"][:2] == [
        {"name": "cat", "images": 36, "top1_error": 0.0, "mistaken_for": None},
        {"name": "dog", "images": 3, "top1_error": 1.0, "mistaken_for": "cat"},
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_json_grows_by_row_and_replaces_the_same(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"

    def rows() -> list[dict]:
        return json.loads(path.read_text())["results"]

    write_results(path, [make()])
    others = [
        make(protocol="center"),
        make(scales=(256,)),
        make(averaging="posteriors"),
        make(step=71),
        make(runs=("vgg16", "vgg19")),
        make(data_dir="/other"),
        make(images=20),
    ]
    for i, other in enumerate(others):
        write_results(path, [other])
        assert len(rows()) == i + 2
    write_results(path, [make(wrong=9)])
    assert len(rows()) == 8
    assert rows()[0]["top1_error"] == pytest.approx(9 / 39)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "results": []}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"eval\.json.* move it away"):
        write_results(path, [make()])
    assert path.read_text() == text


@pytest.mark.parametrize("key", ["networks", "protocol", "scales", "images", "skipped"])
@pytest.mark.parametrize("value", [None, 3, "x", [{}], [None]])
def test_a_damaged_row_is_told_from_ours(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "eval.json"
    write_results(path, [make()])
    assert len(read_results(path)) == 1
    row = json.loads(path.read_text())["results"][0]
    for damaged in ({**row, key: value}, {k: v for k, v in row.items() if k != key}):
        if (key, value) in [("protocol", "x"), ("images", 3), ("skipped", "x")]:
            continue  # as good as the true one
        path.write_text(json.dumps({"version": VERSION, "results": [damaged]}))
        with pytest.raises(ValueError, match=r"eval\.json.* move it away"):
            read_results(path)

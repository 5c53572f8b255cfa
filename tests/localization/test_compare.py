"""The command, on networks with random weights and a few canvases."""

import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.runs import save_run
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LocalizationConfig,
    VGGConfig,
)
from vgg_jax.data.base import Subset
from vgg_jax.localization import compare as run
from vgg_jax.localization import localize as evaluate
from vgg_jax.localization.__main__ import main

CLASSES = Config(
    model=VGGConfig(
        name="vgg11",
        num_classes=10,
        in_channels=1,
        width=0.02,
        fc_kernel=2,
        init="he",
    ),
    data=DataConfig(
        dataset="fashion_mnist_boxes",
        crop=64,
        scale_min=64,
        scale_max=64,
        mean=(60.0,),
        std=(60.0,),
        num_threads=2,
    ),
    evaluation=EvaluationConfig(center_scale=64, scales=(64, 96), batch_size=8),
)


def boxes(regression: str) -> Config:
    outputs = {"scr": 4, "pcr": 40}[regression]
    return dataclasses.replace(
        CLASSES,
        model=dataclasses.replace(CLASSES.model, num_classes=outputs),
        optimizer=dataclasses.replace(CLASSES.optimizer, metric="box_error"),
        localization=LocalizationConfig(regression=regression),
    )


@pytest.fixture
def few(monkeypatch):
    """The first 12 of the test set."""
    opened, data_dir = run.open_source, os.environ.get("VGG_JAX_TEST_DATA")
    changes = {"data_dir": data_dir} if data_dir else {}
    monkeypatch.setattr(
        run,
        "open_source",
        lambda config, split: Subset(
            opened(dataclasses.replace(config, **changes), split), np.arange(12)
        ),
    )


def command(*workdirs: str) -> list[str]:
    """The arguments for networks of boxes and, last, a classifier."""
    *boxes, classes = workdirs
    return [*(f"--workdir={b}" for b in boxes), f"--classifier_workdir={classes}"]


@pytest.mark.slow
def test_scr_and_pcr_together(tmp_path, few, capsys):
    save_run(tmp_path / "classes", CLASSES)
    for regression in ("scr", "pcr"):
        save_run(tmp_path / regression / "boxes", boxes(regression))
    # Runs of one name are told apart.
    paths = [str(tmp_path / name) for name in ("scr/boxes", "pcr/boxes", "classes")]
    assert main(command(*paths)) == 0
    printed = capsys.readouterr().out
    assert "12 images; dense at short sides 64, 96" in printed
    errors = json.loads((tmp_path / "scr/boxes/localization.json").read_text())[
        "errors"
    ]
    for name in (
        "true class, scr/boxes, center crop",
        "true class, pcr/boxes, center crop",
        "top-5 classes, scr/boxes + pcr/boxes, dense",
    ):
        assert errors[name]["count"] == 12 and name in printed
    assert cv2.imread(str(tmp_path / "scr/boxes/boxes.png")).shape[1] == 1440


@pytest.mark.parametrize(("place", "top_1", "top_5"), [(1, 0, 0), (2, 1, 0), (6, 1, 1)])
def test_one_class_and_five(tmp_path, few, monkeypatch, place, top_1, top_5):
    """Where every box is right, and every label the classifier's choice `place`."""

    def right_boxes(localizers, classifier, source, config, classes, **options):
        assert classes.shape == (12, 6)  # the true class, and five
        targets = np.array([source[i]["box"] for i in range(12)])
        chosen = [
            next(c for c in range(10) if c not in row[1:]) if place > 5 else row[place]
            for row in classes
        ]
        return evaluate.Localizations(
            boxes=np.repeat(targets[:, None], 6, axis=1),
            classes=np.column_stack([chosen, classes[:, 1:]]),
            targets=targets,
            labels=np.array(chosen),
            weights=np.ones(12),
        )

    monkeypatch.setattr(evaluate, "dense_boxes", right_boxes)
    save_run(tmp_path / "classes", CLASSES)
    save_run(tmp_path / "boxes", boxes("scr"))
    errors = run.run_localization([tmp_path / "boxes"], tmp_path / "classes")
    assert errors["true class, boxes, dense"].value == 0
    assert errors["top-1 class, boxes, dense"].value == top_1
    assert errors["top-5 classes, boxes, dense"].value == top_5


def test_hosts_compare_networks_data_and_scales(tmp_path, few, monkeypatch):
    save_run(tmp_path / "classes", CLASSES)
    save_run(tmp_path / "boxes", boxes("scr"))
    save_run(tmp_path / "other" / "boxes", boxes("scr"), seed=1)
    facts = []

    class Stop(Exception):
        pass

    def agree(compared):
        facts.append(compared)
        raise Stop

    monkeypatch.setattr(run.distributed, "agree", agree)
    for folder, scales in ((".", (64,)), ("other", (96,))):
        with pytest.raises(Stop):
            run.run_localization(
                [tmp_path / folder / "boxes"], tmp_path / "classes", scales
            )
    one, two = facts
    assert one.keys() == two.keys() and "sample" in one and "data_dir" not in one
    differing = {name for name in one if str(one[name]) != str(two[name])}
    assert differing == {"network of boxes", "Q"}


@pytest.mark.parametrize(
    ("where", "what", "match"),
    [
        (CLASSES, CLASSES, "expected a network that predicts boxes in"),
        (boxes("pcr"), boxes("scr"), "expected a classifier in"),
        (
            boxes("pcr"),
            dataclasses.replace(
                CLASSES, data=dataclasses.replace(CLASSES.data, mean=(61.0,))
            ),
            r"another data\.mean, \(60\.0,\) and \(61\.0,\)",
        ),
    ],
)
def test_networks_that_do_not_fit(tmp_path: Path, where, what, match):
    save_run(tmp_path / "boxes", where)
    save_run(tmp_path / "classes", what)
    with pytest.raises(ValueError, match=match):
        run.run_localization([tmp_path / "boxes"], tmp_path / "classes")


def test_no_run(tmp_path: Path, capsys):
    assert main(command(str(tmp_path / "no"), str(tmp_path))) == 1
    assert "no run in" in capsys.readouterr().err

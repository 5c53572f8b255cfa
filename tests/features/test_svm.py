"""From a folder of pictures to a report, with a tiny network."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.runs import save_run
from vgg_jax import distributed
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.features import collection, svm


def save_network(workdir: Path, name: str, seed: int) -> None:
    config = Config(
        model=VGGConfig(name=name, num_classes=3, width=0.03, fc_kernel=1, init="he"),
        data=DataConfig(
            dataset="folder", crop=32, scale_min=32, scale_max=32, num_threads=2
        ),
        optimizer=OptimizerConfig(metric="top1_error"),
        evaluation=EvaluationConfig(center_scale=32, scales=(32,), batch_size=16),
    )
    save_run(workdir, config, seed)


@pytest.fixture(scope="module")
def network(tmp_path_factory, small_vgg) -> Path:
    """A run to read, or to copy."""
    workdir = tmp_path_factory.mktemp("runs") / "network"
    save_network(workdir, small_vgg, seed=0)
    return workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Stripes that lie, stand or are not there; two sizes; one torn file."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("flat", "lying", "standing"):
        (root / name).mkdir()
        for i in range(40):
            image = rng.integers(0, 60, (36, (36, 48)[i % 2], 3), np.uint8)
            if name == "lying":
                image[i % 3 :: 6] += 190
            if name == "standing":
                image[:, i % 3 :: 6] += 190
            cv2.imwrite(str(root / name / f"{i:02}.png"), image)
    torn = root / "flat" / "00.png"
    torn.write_bytes(torn.read_bytes()[:100])
    return root


def command(workdir: Path, pictures: Path, *more: str) -> list[str]:
    return [f"--workdir={workdir}", f"--data_dir={pictures}", *more]


def test_a_report_of_a_folder(tmp_path, network, pictures, capsys, monkeypatch):
    shutil.copytree(network, tmp_path, dirs_exist_ok=True)
    fraction = "--validation_fraction=0.2"
    assert svm.main(command(tmp_path, pictures, fraction)) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "svm.json").read_text())
    assert sum(report["images"].values()) == 119  # one is torn
    test = report["images"]["test"]
    assert report["accuracy"]["count"] == test and report["accuracy"]["value"] > 0.5
    assert f"accuracy {report['accuracy']['value']:.2%}" in printed
    recalls = [
        report["classes"][name]["recall"] for name in ("flat", "lying", "standing")
    ]
    assert report["mean_class_recall"] == pytest.approx(np.mean(recalls))
    assert report["scales"] == [32] and report["C"] in svm.COSTS
    best = max(report["validation_accuracy"].values())
    assert report["validation_accuracy"][f"{report['C']:g}"] == best
    assert "lying" in printed and "recall" in printed

    # Nothing is computed again, but for a picture that is new.
    asked = []
    run_pass = collection.over_source

    def watched(network, head, source, *arguments, **options):
        asked.extend(source[i]["name"] for i in range(len(source)))
        return run_pass(network, head, source, *arguments, **options)

    monkeypatch.setattr(collection, "over_source", watched)
    assert svm.main(command(tmp_path, pictures, fraction)) == 0
    assert [Path(name).name for name in asked] == ["00.png"]  # the torn one, again
    again = json.loads((tmp_path / "svm.json").read_text())
    assert again == report
    asked.clear()
    assert svm.main(command(tmp_path, pictures, fraction, "--scales=32,40")) == 0
    assert len(asked) == 1 + 120  # all at the new scale
    stacked = [fraction, "--scales=32,40", "--aggregate=stack"]
    asked.clear()
    assert svm.main(command(tmp_path, pictures, *stacked)) == 0
    assert len(asked) == 2


def test_other_weights_are_other_descriptors(tmp_path, network, small_vgg, pictures):
    folders = [tmp_path / "one", tmp_path / "two"]
    shutil.copytree(network, folders[0])
    save_network(folders[1], small_vgg, seed=1)
    for folder in folders:
        assert svm.main(command(folder, pictures, "--layer=relu6")) == 0
    one, two = (np.load(f / "descriptors" / "relu6_q32.npz") for f in folders)
    assert not np.allclose(one["values"], two["values"])
    # Descriptors of other weights, and damaged ones, are not taken.
    first, second = (f / "descriptors" / "relu6_q32.npz" for f in folders)
    expected = np.array(two["values"])
    for bad in (first.read_bytes(), second.read_bytes()[:5000], b"x"):
        second.write_bytes(bad)
        assert svm.main(command(folders[1], pictures, "--layer=relu6")) == 0
        np.testing.assert_allclose(np.load(second)["values"], expected, atol=1e-5)


def test_hosts_compare_network_pictures_and_request(network, pictures, monkeypatch):
    facts = []

    def agree(compared):
        facts.append(compared)
        raise ValueError("the hosts do not agree")

    monkeypatch.setattr(distributed, "agree", agree)
    for options in (["--layer=relu6"], ["--layer=relu7", "--validation_fraction=0.2"]):
        assert svm.main(command(network, pictures, *options)) == 1
    one, two = facts
    assert one.keys() == two.keys() and "network" in one
    differing = {name for name in one if str(one[name]) != str(two[name])}
    assert differing == {"images of train", "images of validation", "layer"}


def test_what_any_host_lacks_is_computed_by_all(monkeypatch):
    assert list(collection._missing_on_any([True, False, True])) == [1]
    monkeypatch.setattr(distributed, "gather", lambda ours: [ours, [0, 1], []])
    assert list(collection._missing_on_any([True, True, True, False])) == [0, 1, 3]


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        (
            ["--layer=relu9"],
            1,
            "no layer 'relu9'; the last one before its classes is 'relu7'",
        ),
        (
            ["--scales=a"],
            2,
            "--scales: expected short sides in pixels such as 256,384,512",
        ),
        (["--data_dir=/nowhere"], 1, "no folder /nowhere"),
    ],
)
def test_errors_are_a_line(network, pictures, capsys, more, code, match):
    assert svm.main(command(network, pictures, *more)) == code
    assert match in capsys.readouterr().err


def test_a_folder_of_torn_pictures(tmp_path, network, capsys):
    for i in range(40):
        torn = tmp_path / "ab"[i % 2] / f"{i}.png"
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_bytes(b"torn")
    assert svm.main(command(network, tmp_path)) == 1
    assert "pictures could be decoded" in capsys.readouterr().err


def test_a_folder_of_one_class(tmp_path, network, capsys):
    for i in range(40):
        path = tmp_path / "cats" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not looked at")
    assert svm.main(command(network, tmp_path)) == 1
    message = "folders of two classes or more to tell apart, found cats alone"
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path, pictures, capsys):
    assert svm.main(command(tmp_path / "no", pictures)) == 1
    assert "no run in" in capsys.readouterr().err

"""`python -m vgg_jax.weights`: what it prints, writes and refuses."""

import dataclasses
import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from tests.runs import save_run
from tests.weights.networks import assert_same_weights, random_network
from vgg_jax.config import Config, DataConfig, OptimizerConfig, VGGConfig
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.workdir.checkpoint import restore_model
from vgg_jax.training.workdir.facts import write_class_names
from vgg_jax.weights import PUBLISHED, from_pretrained, load_weights, save_weights
from vgg_jax.weights.__main__ import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a whole network of the papers, the smallest."""
    model = random_network("nin_cifar", width=1.0, num_classes=7)
    path = tmp_path / "nin.safetensors"
    save_weights(model, path, names="vgg_jax", class_names="abcdefg")
    return path


def test_list_has_every_name(capsys: Capture) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PUBLISHED)
    assert "28.41   9.62" in printed


def test_fetch_prints_the_path(file: Path, capsys: Capture) -> None:
    assert main(["fetch", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"


def test_inspect_tells_what_is_known(file: Path, capsys: Capture) -> None:
    assert main(["inspect", str(file)]) == 0
    printed = capsys.readouterr().out
    for fact in (
        "format         safetensors",
        "network        nin_cifar with 7 classes",
        "names          vgg_jax",
        "lineage        unknown",
        "channels       RGB",
        "classes        7: a, b, c, d, e, ...",
        hashlib.sha256(file.read_bytes()).hexdigest(),
        "kernel [192, 3, 5, 5]  bias [192]",
    ):
        assert fact in printed


def test_inspect_lists_the_layers_of_any_file(tmp_path: Path, capsys: Capture) -> None:
    arrays = {"some.weight": np.zeros((2, 3), np.float32), "other": np.zeros(4)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "network    none that is known" in printed and "kernel [2, 3]" in printed
    assert "belonging to no layer: other" in printed


def test_verify_knows_a_published_file(
    file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["verify", str(file)]) == 0
    assert "nin_cifar with 7 classes, all values finite, no file" in (
        capsys.readouterr().out
    )
    row = dataclasses.replace(
        PUBLISHED["caffe/nin_cifar"],
        size=file.stat().st_size,
        digest=f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}",
    )
    monkeypatch.setitem(PUBLISHED, "caffe/nin_cifar", row)
    assert main(["verify", str(file)]) == 0
    assert "published as caffe/nin_cifar" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["a value", "a layer", "the end"])
def test_verify_fails_with_one_line(damage: str, file: Path, capsys: Capture) -> None:
    arrays = safetensors.numpy.load_file(file)
    if damage == "a value":
        arrays["conv2.bias"][3] = np.nan
    elif damage == "a layer":
        del arrays["cccp1.weight"]
    safetensors.numpy.save_file(arrays, file)
    if damage == "the end":
        file.write_bytes(file.read_bytes()[:-1000])
    assert main(["verify", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ") and error.count("\n") == 1


def test_verify_of_an_unknown_name(capsys: Capture) -> None:
    assert main(["verify", "torchvision/vgg_16"]) == 1
    assert "did you mean 'torchvision/vgg16'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "flags", "naming"),
    [
        ("a.safetensors", ["--names", "vgg_jax"], "vgg_jax"),
        ("a.weights.h5", ["--output_channels", "BGR"], "keras"),
    ],
)
def test_convert_writes_another_file(
    output: str, flags: list[str], naming: str, file: Path, capsys: Capture
) -> None:
    place = file.parent / output
    assert main(["convert", str(file), str(place), *flags]) == 0
    assert f"written to {place}" in capsys.readouterr().out
    first, second = (
        random_network("nin_cifar", seed, width=1.0, num_classes=7) for seed in (1, 2)
    )
    load_weights(first, file)
    loaded = load_weights(second, place)
    assert_same_weights(first, second)
    assert loaded.class_names == tuple("abcdefg")


def test_convert_writes_a_folder_of_the_hub(file: Path, capsys: Capture) -> None:
    folder = file.parent / "mine"
    assert main(["convert", str(file), str(folder)]) == 0
    model, loaded = from_pretrained(folder)
    theirs = random_network("nin_cifar", 1, width=1.0, num_classes=7)
    load_weights(theirs, file)
    assert_same_weights(model, theirs)
    assert loaded.class_names == tuple("abcdefg")


def test_an_order_of_channels_that_only_the_user_knows(
    file: Path, capsys: Capture
) -> None:
    theirs, ours = file.with_name("a.weights.h5"), file.with_name("b.safetensors")
    assert main(["convert", str(file), str(theirs), "--output_channels", "BGR"]) == 0
    with h5py.File(theirs, "r+") as root:
        del root.attrs["vgg_jax"]
    assert main(["convert", str(theirs), str(ours)]) == 1
    assert "--channels" in capsys.readouterr().err
    assert main(["inspect", str(theirs)]) == 0
    assert "channels       unknown" in capsys.readouterr().out
    assert main(["inspect", str(theirs), "--channels", "BGR"]) == 0
    assert "channels       BGR" in capsys.readouterr().out
    assert main(["convert", str(theirs), str(ours), "--channels", "BGR"]) == 0
    first, second = (
        random_network("nin_cifar", seed, width=1.0, num_classes=7) for seed in (1, 2)
    )
    load_weights(first, file)
    load_weights(second, ours)
    assert_same_weights(first, second)


def test_names_of_another_number_of_classes(file: Path, capsys: Capture) -> None:
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(arrays, file, {"class_names": '["a", "b"]'})
    assert main(["inspect", str(file)]) == 0
    assert "notes          its names of classes are left" in capsys.readouterr().out
    assert main(["verify", str(file)]) == 1
    assert "expected 7, one an output, got 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    model = VGGConfig(name="vgg11", width=1 / 64, num_classes=5)
    data = DataConfig(dataset="folder", mean=(1, 2, 3), std=(4, 5, 6))
    optimizer = OptimizerConfig(metric="top1_error")
    save_run(folder, Config(model=model, data=data, optimizer=optimizer))
    write_class_names(epath.Path(folder), list("abcde"))
    return folder


@pytest.mark.parametrize("output", ["mine", "mine.safetensors", "mine.weights.h5"])
def test_convert_writes_the_weights_of_a_run(
    output: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / output
    assert main(["convert", str(run), str(place)]) == 0
    assert capsys.readouterr().out == f"step 0 of {run} written to {place}\n"
    if output == "mine":
        model, loaded = from_pretrained(place)
    else:
        model = random_network(width=1 / 64)
        loaded = load_weights(model, place)
    trained, _, _ = restore_model(run)
    assert_same_weights(model, trained)
    assert loaded.normalization == Normalization((1, 2, 3), (4, 5, 6))
    assert loaded.class_names == tuple("abcde") and not loaded.kept


def test_other_actions_say_what_takes_a_run(run: Path, capsys: Capture) -> None:
    for action in ("inspect", "verify", "fetch"):
        assert main([action, str(run)]) == 1
        assert f"convert {run} OUT.safetensors" in capsys.readouterr().err


def test_convert_refuses_other_endings(file: Path, capsys: Capture) -> None:
    assert main(["convert", str(file), "a.pth"]) == 1
    assert "ends in .safetensors or .weights.h5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["lst"], ["inspect"], ["list", "a"], ["convert", "a"]]
)
def test_a_command_line_that_cannot_be_followed(
    arguments: list[str], capsys: Capture
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_convert_writes_over_nothing(file: Path, run: Path, capsys: Capture) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for source in (run, file):
        assert main(["convert", str(source), str(run)]) == 1
        assert f"{run} is there already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    place = file.parent / "theirs.safetensors"
    place.write_text("mine")
    assert main(["convert", str(file), str(place)]) == 1
    assert place.read_text() == "mine"


def test_convert_makes_the_folder_of_its_file(file: Path, capsys: Capture) -> None:
    place = file.parent / "new" / "place" / "w.safetensors"
    assert main(["convert", str(file), str(place)]) == 0
    assert place.is_file()

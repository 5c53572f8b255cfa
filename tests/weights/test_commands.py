"""`python -m vgg_jax.weights`: what it prints, writes and refuses."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.weights.networks import assert_same_weights, random_network
from vgg_jax.weights import PUBLISHED, load_weights, save_weights
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
        ("a.weights.h5", ["--channels", "BGR"], "keras"),
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

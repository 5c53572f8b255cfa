"""`python -m vgg_jax.export`: what it writes and refuses."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from tests.runs import save_run
from tests.weights.networks import random_network
from vgg_jax.config import Config, DataConfig, LocalizationConfig, VGGConfig
from vgg_jax.export import load
from vgg_jax.export.__main__ import main
from vgg_jax.training.workdir.facts import write_class_names
from vgg_jax.weights import save_weights

Capture = pytest.CaptureFixture[str]


def config() -> Config:
    return Config(
        model=VGGConfig(
            name="vgg11", width=1 / 16, num_classes=7, fc_features=64, fc_kernel=1
        ),
        data=DataConfig(dataset="folder", crop=32),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "vgg11"
    save_run(workdir, config())
    write_class_names(workdir, tuple("abcdefg"))
    return workdir


def props(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def test_a_run_is_written_in_both_formats(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    file, folder = tmp_path / "network.onnx", tmp_path / "network"
    flags = ["--workdir", str(run), "--input", "uint8"]
    assert main([*flags, "--format", "onnx", "--batch_size=any", str(file)]) == 0
    assert main([*flags, "--format", "stablehlo", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {folder}"
    written = json.loads((folder / "metadata.json").read_text())
    found = props(file)
    for facts in (written, found):
        assert facts["network"] == "vgg11" and facts["lineage"] == "vgg_jax"
        assert facts["input"] == "uint8"
    assert json.loads(found["class_names"]) == written["class_names"] == list("abcdefg")
    assert written["normalization"]["mean"] == list(config().data.mean)
    (images,) = onnx.load(file).graph.input
    dims = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert dims == ["N", "H", "W", 3]


def test_weights_are_written_with_their_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = random_network("nin_cifar", width=1.0, num_classes=7)
    save_weights(model, tmp_path / "theirs.safetensors", class_names="abcdefg")
    flags = ["--weights", "theirs.safetensors", "--source", "torchvision"]
    flags += ["--format", "onnx", "--output", "pool2", "--image_size=32x40"]
    assert main([*flags, "pool2.onnx"]) == 0
    found = props(tmp_path / "pool2.onnx")
    assert found["weights"] == "theirs.safetensors" and found["output"] == "pool2"
    assert found["lineage"] == "torchvision" and len(found["source_sha256"]) == 64
    (described,) = onnx.load(tmp_path / "pool2.onnx").graph.output
    dims = [d.dim_value for d in described.type.tensor_type.shape.dim]
    assert dims == [1, 192, 8, 10]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--format", "onxx"], 2, "unknown name 'onxx': did you mean 'onnx'"),
        (["--format", "onnx", "--image_size=224"], 2, "pixels such as 224x224, or any"),
        (["--format", "onnx", "--batch_size=0"], 2, "a whole number of at least 1"),
        (["--format", "stablehlo", "--batch_size=2"], 2, "leave out --batch_size"),
        (["--format", "onnx", "--output=pool_5"], 1, "did you mean 'pool5'"),
        (["--format", "onnx", "--input=int8"], 1, "did you mean 'uint8'"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    flags: list[str],
    code: int,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    arguments = ["--workdir", str(run), *flags, str(tmp_path / "out")]
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_what_is_in_the_way_is_seen_before_a_network_is_loaded(
    format: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "program.stablehlo").write_text("mine")
    out = tmp_path / ("program.stablehlo" if format == "onnx" else "")
    assert main(["--workdir", "none", "--format", format, str(out)]) == 1
    error = capsys.readouterr().err
    assert "already: remove it" in error and error.count("\n") == 1
    assert (tmp_path / "program.stablehlo").read_text() == "mine"


def test_boxes_and_whitening_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings, _ = load.restore_model(run)
    whitened = dataclasses.replace(settings.data, whiten=True)
    settings = dataclasses.replace(settings, data=whitened)
    monkeypatch.setattr(load, "restore_model", lambda workdir: (model, settings, 3))
    with pytest.raises(ValueError, match="whitening is not exported"):
        load.load_program(run, output="scores", input="uint8")
    program = load.load_program(run, output="scores", input="normalized")
    assert program.normalization is None and program.facts["step"] == 3
    settings = dataclasses.replace(settings, localization=LocalizationConfig())
    monkeypatch.setattr(load, "read_class_names", lambda workdir: ("one", "two"))
    with pytest.raises(ValueError, match="predicts boxes, not classes"):
        load.load_program(run, output="scores", input="normalized")
    load.load_program(run, output="pool5", input="normalized")

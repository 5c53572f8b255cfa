"""The command line: python -m vgg_jax.tools.tpu_check."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.weights.networks import random_network
from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.preprocessing import Normalization
from vgg_jax.tools import tpu_check
from vgg_jax.tools.programs import memory_advice
from vgg_jax.tools.tpu_check import main, topology_mesh
from vgg_jax.tools.tpu_report import Report
from vgg_jax.weights import save_weights

ROOT = Path(__file__).parents[2]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -r requirements-tpu.txt",
)


def config(**settings: object) -> Config:
    return Config(
        model=VGGConfig(name="vgg16"),
        data=DataConfig(dataset="imagenet2012"),
        **settings,  # type: ignore[arg-type]
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgg_jax.tools.tpu_check", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("topology", ["h100:8", "v5:2x4", "2x4"])
def test_a_name_that_is_no_tpu(topology: str) -> None:
    with pytest.raises(ValueError, match=f"unknown TPU .* in topology '{topology}'"):
        topology_mesh(topology)


def test_the_command_refuses_a_name_that_is_no_tpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configuration = f"--config={ROOT}/configs/vgg16.py"
    assert main([configuration, "--topology=v5e:2x4,v9:2x2"]) == 2
    assert "unknown TPU 'v9' in topology 'v9:2x2'" in capsys.readouterr().err


@pytest.mark.parametrize("has_config", [False, True])
def test_weights_stand_in_the_place_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_config: bool
) -> None:
    path = tmp_path / "a.safetensors"
    width = 1 / 16 if has_config else 1.0
    model = random_network("nin_cifar", width=width, num_classes=7)
    normalization = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    save_weights(model, path, names="vgg_jax", normalization=normalization)
    compiled = []

    def compile(config: Config, program: str, topology: str, mesh: object) -> Report:
        compiled.append(config)
        return Report(
            program=program,
            topology=topology,
            chips=1,
            batch_size=1,
            settings=config.model.dtype,
            model_flops=1.0,
        )

    monkeypatch.setattr(tpu_check, "topology_mesh", lambda topology: None)
    monkeypatch.setattr(tpu_check, "compile_program", compile)
    flags = ["--programs=dense", f"--weights={path}"]
    if has_config:
        flags += [
            f"--config={ROOT}/configs/nin_cifar.py",
            f"--config.model.width={width}",
            "--config.model.num_classes=None",
        ]
    uses_cache = jax.config.jax_enable_compilation_cache
    try:
        main(flags)
    finally:
        jax.config.update("jax_enable_compilation_cache", uses_cache)
    (settings,) = compiled
    assert settings.model.name == "nin_cifar" and settings.model.width == width
    assert settings.model.num_classes == 7
    assert (settings.data.mean, settings.data.std) == ((1, 2, 3), (4, 5, 6))


def test_neither_weights_nor_a_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "say which configuration" in capsys.readouterr().err


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -r requirements-tpu\.txt"):
        topology_mesh("v5e:2x4")


def test_advice_names_what_is_not_done_yet() -> None:
    assert list(memory_advice(config(), "train_step", 8)) == [
        "--config.model.dtype=bfloat16",
        "--config.remat=True",
        "--config.shard_fc=True",
        "--config.accumulate_steps=2, or more",
        "--config.batch_size=128, or smaller, or more devices",
    ]
    done = config(remat=True, shard_fc=True, accumulate_steps=32)
    done.model.dtype = "bfloat16"
    assert list(memory_advice(done, "train_step", 8)) == [
        "--config.batch_size=128, or smaller, or more devices"
    ]
    assert list(memory_advice(done, "dense", 1)) == [
        "--config.evaluation.batch_size=32, or smaller"
    ]
    assert list(memory_advice(done, "dense", 8)) == [
        "--config.evaluation.batch_size=256, or smaller"
    ]
    done.evaluation.batch_size = 64
    [smaller_images] = memory_advice(done, "dense", 8)  # one on each chip as it is
    assert smaller_images.startswith("--config.evaluation.scales of smaller images")


TINY = [
    "--config=configs/vgg11.py",
    "--config.model.width=0.0625",
    "--config.model.num_classes=10",
    "--config.model.fc_features=256",
    "--config.model.fc_kernel=1",
    "--config.data.crop=32",
    "--config.evaluation.scales=(64,)",
]


@needs_libtpu
@pytest.mark.slow
def test_the_compiler_on_a_tiny_network(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    settings = ["--config.accumulate_steps=4", "--config.shard_fc=True"]
    done = run(*TINY, *settings, "--topology=v5e:2x4", f"--json={file}")
    assert done.returncode == 0, done.stderr
    train, dense = json.loads(file.read_text())
    assert train["program"] == "train_step" and train["chips"] == 8
    kinds = {c["kind"] for c in train["costs"]["collectives"]}
    assert "all-reduce" in kinds and "all-gather" in kinds
    assert train["costs"]["unknown_loops"] == 0
    assert any(o["executions"] == 4 for o in train["costs"]["operations"])
    assert any("conv" in o["source"] for o in train["costs"]["operations"])
    assert 0 < train["utilization"] < 1
    assert dense["costs"]["cycles"] > 0 and dense["costs"]["collectives"] == []
    assert "train_step on v5e:2x4: 8 chips, 32 images a chip" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_errors_are_one_line() -> None:
    for arguments, code, message in (
        (["--topology=v5e:3x5"], 2, "expected a topology such as v5e:2x4"),
        (["--topology=v5e"], 2, "expected a topology such as v5e:2x4"),
        (["--programs=trian_step"], 2, "did you mean 'train_step'"),
        (["--config.batch_size=100"], 1, "batch_size that 8 devices can share"),
    ):
        done = run(*TINY, *arguments)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert message in done.stderr
        assert "Traceback" not in done.stderr

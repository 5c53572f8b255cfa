"""Runs that start from a file of weights, and see pixels as those expect."""

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vgg_jax.config import IMAGENET_MEAN, Config
from vgg_jax.distributed import make_mesh
from vgg_jax.models import create_model
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.init_from import prepare_start
from vgg_jax.training.loop import train
from vgg_jax.training.pretrained import (
    load_pretrained,
    names_weights,
    weights_path,
    with_normalization,
)
from vgg_jax.training.program import build_program
from vgg_jax.training.steps import split
from vgg_jax.training.workdir.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.workdir.facts import DATA, WorkdirMismatch, read_config
from vgg_jax.weights.published import file_digest

EXPECTED = Normalization(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))


def save_weights(
    path: Path, config: Config, seed: int, layers: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Writes a network's first weights as safetensors, all or those of `layers`.

    Returns:
        The parameters by layer.
    """
    model = create_model(**dataclasses.asdict(config.model), rngs=jax.random.key(seed))
    params = jax.device_get(split(model)[1])
    arrays = {
        f"{layer}.{'weight' if name == 'kernel' else name}": (
            array.transpose(3, 2, 0, 1) if name == "kernel" else array
        )
        for layer, variables in params.items()
        if not layers or layer in layers
        for name, array in variables.items()
    }
    write_safetensors(path, arrays, {"normalization": json.dumps(vars(EXPECTED))})
    return params


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    data = b""
    for name, array in arrays.items():
        content = np.ascontiguousarray(array, np.float32).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        data += content
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


@pytest.fixture
def config(tiny_config: Any) -> Config:
    """A run on RGB pictures, with the normalization that is the default."""
    config = tiny_config()
    config.model.in_channels = 3
    config.data.mean, config.data.std = IMAGENET_MEAN, (1.0, 1.0, 1.0)
    return config


def with_classes(config: Config, num_classes: int) -> Config:
    model = dataclasses.replace(config.model, num_classes=num_classes)
    return dataclasses.replace(config, model=model)


def final_params(workdir: Path) -> dict[str, Any]:
    program = build_program(read_config(workdir), make_mesh(jax.devices()[:1]))
    with Checkpoints(workdir, "validation_top1_error", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(program.state, max(saved_steps(workdir)))
    return jax.device_get(state.params)


@pytest.mark.usefixtures("one_device")
def test_a_run_from_a_file_of_weights_trains_a_new_head(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, workdir = tmp_path / "vgg11.safetensors", tmp_path / "run"
    theirs = save_weights(path, with_classes(config, 7), seed=5)
    config.init_from = str(path)
    config.model.num_classes = None
    config.optimizer.trained_layers = ("fc8",)
    config.optimizer.keep_maps = True  # less to compile
    config.num_epochs = 0.5
    assert train(config, workdir) is None
    printed = capsys.readouterr().out
    assert "expect data.mean=(100.0, 110.0, 120.0)" in printed
    assert "fc6, fc7; random (he): fc8" in printed and str(path) in printed
    params = final_params(workdir)
    for layer, variables in params.items():
        if layer != "fc8":
            jax.tree.map(np.testing.assert_array_equal, variables, theirs[layer])
    assert params["fc8"]["kernel"].shape[-1] == 3
    data = read_config(workdir).data
    assert (data.mean, data.std) == (EXPECTED.mean, EXPECTED.std)
    facts = json.loads((workdir / DATA).read_text())
    assert facts["sha256 of init_from"] == file_digest(path)

    # The same command goes on, and needs the file no more; another one is refused.
    kept = path.rename(tmp_path / "kept.safetensors")
    config.num_epochs = 0.7
    assert train(config, workdir) is None
    assert "sha256 of init_from" in json.loads((workdir / DATA).read_text())
    save_weights(path, with_classes(config, 7), seed=6)
    with pytest.raises(WorkdirMismatch, match="sha256 of init_from"):
        train(config, workdir)
    kept.rename(path)
    assert train(config, workdir) is None


def test_a_trunk_leaves_the_fully_connected_layers_random(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "trunk.safetensors"
    convolutions = tuple(
        f"conv{i}" for i in ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")
    )
    save_weights(path, config, 0, convolutions)
    pretrained = load_pretrained(config, path)
    assert pretrained.loaded.kept == ("fc6", "fc7", "fc8")
    assert tuple(pretrained.params) == convolutions
    save_weights(path, config, 0, (*convolutions, "fc6"))
    with pytest.raises(ValueError, match="fc7: expected under the name"):
        load_pretrained(config, path)
    save_weights(path, config, 0, convolutions[:-1])
    with pytest.raises(ValueError, match="conv5_2: expected under the name"):
        load_pretrained(config, path)


def test_the_weights_say_how_pixels_are_normalized(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking(**data: Any) -> Config:
        return dataclasses.replace(
            config, data=dataclasses.replace(config.data, **data)
        )

    same = {"mean": EXPECTED.mean, "std": EXPECTED.std}
    assert with_normalization(config, EXPECTED) == asking(**same)
    assert "this run uses them" in capsys.readouterr().out
    assert with_normalization(asking(**same), EXPECTED) == asking(**same)
    assert capsys.readouterr().out == ""
    for other in ({"mean": (1.0, 2.0, 3.0)}, {"std": (9.0,) * 3}, {"whiten": True}):
        with pytest.raises(ValueError, match=r"expect data\.mean=\(100.*got data\."):
            with_normalization(asking(**other), EXPECTED)
    assert with_normalization(config, None) == config
    assert "do not say what is done to pixels" in capsys.readouterr().out


def test_a_path_is_a_file_of_weights_or_the_folder_of_a_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("here/w.pth", "runs/v.pth"):
        (tmp_path / name).touch()

    def found(init_from: str) -> Path | None:
        config.init_from = init_from
        path = weights_path(config, tmp_path / "runs" / "b")
        return None if path is None else Path(path).resolve()

    assert found("w.pth") == tmp_path / "here" / "w.pth"
    assert found("v.pth") == tmp_path / "runs" / "v.pth"
    assert found(str(tmp_path / "here" / "w.pth")) == tmp_path / "here" / "w.pth"
    assert found("a") is None and found("vgg16") is None
    for init_from, is_weights in (("a", False), ("torchvision/vgg16", True)):
        config.init_from = init_from
        assert names_weights(config, tmp_path / "runs" / "b") == is_weights
    (tmp_path / "runs" / "torchvision" / "vgg16").mkdir(parents=True)
    assert not names_weights(config, tmp_path / "runs" / "b")
    config.init_from = "u.pth"
    with pytest.raises(FileNotFoundError, match=r"there is no .*runs/u\.pth"):
        prepare_start(config, tmp_path / "runs" / "b")

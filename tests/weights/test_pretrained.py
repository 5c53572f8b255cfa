"""Folders of networks as the hub has them, and networks that have weights already."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from tests.weights.networks import assert_same_weights, random_network
from vgg_jax import models
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights import from_pretrained, push, save_pretrained, save_weights

MINE = Normalization(mean=(1.5, 2.5, 1 / 3), std=(4.0, 5.0, 6.0))
OPTIONS = {"width": 1 / 16}


def test_a_folder_makes_the_network_again(tmp_path: Path) -> None:
    model = random_network("vgg11_bn")
    names = tuple("abcde")
    save_pretrained(
        model,
        tmp_path / "mine",
        "vgg11_bn",
        OPTIONS,
        normalization=MINE,
        class_names=names,
        license="MIT",
    )
    again, loaded = from_pretrained(tmp_path / "mine")
    assert again.layers == model.layers
    assert_same_weights(model, again)
    assert loaded.normalization == MINE and loaded.class_names == names
    config = json.loads((tmp_path / "mine/config.json").read_text())
    assert config["architecture"] == "vgg11_bn" and config["num_classes"] == 5
    assert config["vgg_jax"]["license"] == "MIT"
    assert config["pretrained_cfg"]["mean"][0] == 1.5 / 255
    save_pretrained(again, tmp_path / "again", "vgg11_bn", OPTIONS, loaded=loaded)
    assert from_pretrained(tmp_path / "again")[1].normalization == MINE


def test_a_backbone_of_a_folder(tmp_path: Path) -> None:
    model = random_network()
    save_pretrained(model, tmp_path, "vgg11", OPTIONS)
    backbone, loaded = from_pretrained(tmp_path, num_classes=None)
    assert backbone.num_classes is None and "features.0" not in loaded.unused
    np.testing.assert_array_equal(
        backbone.conv5_2.kernel[...], model.conv5_2.kernel[...]
    )


def test_a_folder_of_timm(tmp_path: Path) -> None:
    model = random_network("nin_cifar", width=1.0, num_classes=7)
    save_weights(model, tmp_path / "model.safetensors")
    config = {
        "architecture": "nin_cifar",
        "num_classes": 7,
        "pretrained_cfg": {"mean": [0.5, 0.25, 0.125], "std": [1.0, 0.5, 0.25]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, loaded = from_pretrained(tmp_path)
    assert_same_weights(model, again)
    assert loaded.normalization == Normalization(
        mean=(127.5, 63.75, 31.875), std=(255, 127.5, 63.75)
    )


def test_options_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got another one; give the options"):
        save_pretrained(random_network(), tmp_path, "vgg11")


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected the configuration"):
        from_pretrained(tmp_path)


OWN = {"options": {"num_classes": 5, **OPTIONS}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "vgg11", "vgg_jax": {"options": [1]}}, "options of save_pr"),
        ({"architecture": "vgg11", "vgg_jax": 3}, "options of save_pretrained"),
        ({"architecture": "vgg11", "vgg_jax": {"options": {"widht": 1}}}, "'width'"),
        ({"architecture": "vgg11", "vgg_jax": {"options": {"width": "a"}}}, "makes a"),
        ({"architecture": "vgg_11", "vgg_jax": OWN}, "did you mean"),
        ({"architecture": "vgg11", "num_classes": "x"}, "what makes a vgg11"),
        ({"architecture": "vgg11", "vgg_jax": OWN, "mean": 1, "std": [1]}, "as mean"),
        (
            {"architecture": "vgg11", "vgg_jax": OWN, "mean": ["a"], "std": [1]},
            "how its images are normalized",
        ),
        (
            {
                "architecture": "vgg11",
                "vgg_jax": OWN,
                "pretrained_cfg": {"mean": [1, 1, 1], "std": [1, 0, 1]},
            },
            "deviations above 0",
        ),
        (
            {"architecture": "vgg11", "vgg_jax": OWN, "pretrained_cfg": "none"},
            "how its images are normalized",
        ),
        ({"architecture": "vgg11", "vgg_jax": OWN, "mean": [1], "std": [1]}, "channel"),
    ],
)
def test_a_configuration_that_makes_no_network(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as error:
        from_pretrained(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ") and "\n" not in message


def test_a_repository_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(random_network(), tmp_path / "hub", "vgg11", OPTIONS)
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"]))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model, _ = from_pretrained("some/one", revision="abc")
    assert_same_weights(model, random_network())
    assert asked == [("some/one", "abc")]


def test_a_repository_that_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="some/one: no such folder, and no") as error:
        from_pretrained("some/one")
    assert "\n" not in str(error.value)


def test_a_folder_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def __init__(self, token: str | None):
            calls.append(("token", token))

        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", (repository, options)))

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            calls.append(("upload", options))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        push(tmp_path, "some/one")
    assert not calls
    save_pretrained(random_network(), tmp_path, "vgg11", OPTIONS)
    assert push(tmp_path, "some/one", private=True, token="t") == "https://hub/commit"
    token, create, (_, upload) = calls
    assert token == ("token", "t")
    assert create == ("create", ("some/one", {"private": True, "exist_ok": True}))
    assert upload["folder_path"] == str(tmp_path) and upload["repo_id"] == "some/one"


def test_a_network_is_made_with_weights(tmp_path: Path) -> None:
    theirs = random_network("vgg11_bn")
    save_weights(theirs, tmp_path / "a.safetensors")
    ours = vgg_jax.create_model(
        "vgg11_bn", weights=tmp_path / "a.safetensors", num_classes=5, **OPTIONS
    )
    assert_same_weights(theirs, ours)
    assert nnx.state(ours, nnx.Param)


def test_a_network_is_made_with_weights_whose_order_is_given(tmp_path: Path) -> None:
    theirs, path = random_network(), tmp_path / "a.weights.h5"
    save_weights(theirs, path, channels="BGR")
    with h5py.File(path, "r+") as file:
        del file.attrs["vgg_jax"]
    options: dict[str, Any] = {"weights": path, "num_classes": 5, **OPTIONS}
    with pytest.raises(ValueError, match="nothing tells whether"):
        vgg_jax.create_model("vgg11", **options)
    for given in ({"channels": "BGR"}, {"source": "oxford"}):
        ours = vgg_jax.create_model("vgg11", **options, **given)
        assert_same_weights(theirs, ours)
    with pytest.raises(TypeError, match="source and channels are of weights"):
        vgg_jax.create_model("vgg11", rngs=jax.random.key(0), channels="BGR")


def test_what_weights_do_not_fill_is_fresh(tmp_path: Path) -> None:
    theirs = random_network()
    path = tmp_path / "a.safetensors"
    save_weights(theirs, path)
    ours = vgg_jax.create_model("vgg11", weights=path, num_classes=3, **OPTIONS)
    np.testing.assert_array_equal(ours.fc7.kernel[...], theirs.fc7.kernel[...])
    assert ours.fc8.kernel.shape == (1, 1, 256, 3)
    assert np.std(ours.fc8.kernel[...]) > 0 and not ours.fc8.bias[...].any()


def test_a_key_makes_what_weights_do_not_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, made = random_network(), random_network(seed=1, num_classes=3)
    save_weights(theirs, tmp_path / "a.safetensors")
    keys = []

    def create(name: str, *, rngs: jax.Array, **options: object) -> models.ConvNet:
        keys.append(rngs)
        return made

    monkeypatch.setattr(models, "create_model", create)
    key = jax.random.key(7)
    ours = vgg_jax.create_model("vgg11", weights=tmp_path / "a.safetensors", rngs=key)
    assert ours is made and keys == [key]
    np.testing.assert_array_equal(ours.fc7.kernel[...], theirs.fc7.kernel[...])
    assert ours.fc8.kernel.shape[-1] == 3


def test_fresh_weights_need_a_key() -> None:
    with pytest.raises(TypeError, match="expected rngs"):
        vgg_jax.create_model("vgg11")
    with pytest.raises(FileNotFoundError, match="did you mean 'torchvision/vgg11'"):
        vgg_jax.create_model("vgg11", weights="torchvision/vgg_11")


def test_the_folder_of_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is the folder of a run"):
        save_pretrained(random_network("vgg11_bn"), tmp_path, "vgg11_bn", OPTIONS)
    assert (tmp_path / "config.json").read_text() == "{}"

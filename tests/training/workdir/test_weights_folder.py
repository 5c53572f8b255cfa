"""Foreign weights stand where a run's folder would."""

import dataclasses
import importlib
import json
from pathlib import Path

import chex
import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import nnx

from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.models import ConvNet, create_model
from vgg_jax.training.workdir import weights_folder
from vgg_jax.training.workdir.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir.facts import read_class_names
from vgg_jax.training.workdir.weights_folder import (
    WEIGHTS,
    chosen_folders,
    make_weights_folder,
    published_results,
    read_facts,
)
from vgg_jax.weights import published
from vgg_jax.weights.lineage import LINEAGES
from vgg_jax.weights.published import PUBLISHED, Published
from vgg_jax.weights.save import save_weights

MODEL = VGGConfig(name="vgg11", width=1 / 16, num_classes=7, fc_features=64)


@pytest.fixture
def model() -> ConvNet:
    return create_model(**dataclasses.asdict(MODEL), rngs=jax.random.key(5))


@pytest.fixture
def weights(model: ConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "theirs.safetensors"
    save_weights(model, path)
    return path


def config(**changes: object) -> Config:
    model = dataclasses.replace(MODEL, **changes)  # type: ignore[arg-type]
    return Config(model=model, data=DataConfig(dataset="folder"))


def test_weights_are_restored_as_a_run_is(model: ConvNet, weights: Path) -> None:
    folder = make_weights_folder(str(weights), config(), "torchvision")
    assert folder.parts[-2:] == ("runs", "theirs")
    restored, settings, step = restore_model(folder)
    assert step == 0 and settings.model == MODEL
    theirs = LINEAGES["torchvision"].normalization
    assert theirs is not None
    assert (settings.data.mean, settings.data.std) == (theirs.mean, theirs.std)
    chex.assert_trees_all_equal(
        nnx.to_pure_dict(nnx.state(restored)), nnx.to_pure_dict(nnx.state(model))
    )
    check_classifies(settings, folder)
    # Once more is the same folder; a workdir stays what it is.
    again = chosen_folders(folder, [str(weights)], config(), "torchvision")
    assert again == [folder, folder]


def test_the_number_of_classes_can_be_left_to_the_file(weights: Path) -> None:
    folder = make_weights_folder(str(weights), config(num_classes=None))
    _, settings, _ = restore_model(folder)
    assert settings.model.num_classes == 7


def test_settings_that_nothing_tells_are_the_configurations(weights: Path) -> None:
    settings = config()
    folder = make_weights_folder(str(weights), settings)
    _, kept, _ = restore_model(folder)
    assert kept.data.mean == settings.data.mean
    with pytest.raises(ValueError, match=r"convert RUN OUT.* and so does --config"):
        make_weights_folder(str(weights))


def test_weights_of_a_network_for_small_images_see_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("nin_cifar", num_classes=10, rngs=jax.random.key(0))
    normalization = LINEAGES["torchvision"].normalization
    save_weights(model, tmp_path / "nin.safetensors", normalization=normalization)
    _, settings, _ = restore_model(make_weights_folder("nin.safetensors"))
    assert settings.model.name == "nin_cifar" and settings.data.crop == 32
    assert settings.evaluation.center_scale == 32
    assert settings.evaluation.scales == (32,)


def test_weights_without_a_classifier_name_nothing(weights: Path) -> None:
    folder = make_weights_folder(str(weights), config(num_classes=9))
    _, settings, _ = restore_model(folder)
    with pytest.raises(ValueError, match="no weights for fc8 of this vgg11 with 9 cl"):
        check_classifies(settings, folder)


def test_other_weights_and_settings_are_refused(weights: Path) -> None:
    folder = make_weights_folder(str(weights), config())
    with pytest.raises(ValueError, match=r"model\.dropout: 0\.5 there, 0\.2 now"):
        make_weights_folder(str(weights), config(dropout=0.2))
    other = create_model(**dataclasses.asdict(MODEL), rngs=jax.random.key(6))
    save_weights(other, weights)
    with pytest.raises(ValueError, match=r"theirs\.safetensors, not .*: move it"):
        make_weights_folder(str(weights), config())
    with pytest.raises(ValueError, match="has changed since"):
        restore_model(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="are gone: no file"):
        restore_model(folder)


def test_a_damaged_folder_is_named(weights: Path) -> None:
    folder = make_weights_folder(str(weights), config())
    path = Path(folder / WEIGHTS)
    text = path.read_text()
    for damage in ("", "[]", "{}", text.replace("theirs", "others", 1)):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"weights\.json"):
            restore_model(folder)


def test_class_names_and_published_errors_are_kept(
    model: ConvNet, weights: Path
) -> None:
    folder = make_weights_folder(str(weights), config())
    assert read_class_names(folder) is None and not published_results(folder)
    facts = read_facts(folder)
    assert facts is not None and not facts["random_layers"]
    facts["published"] = [
        {"protocol": "center", "scales": [256], "top1_error": 28.4, "top5_error": 9.6}
    ]
    Path(folder / WEIGHTS).write_text(json.dumps(facts))
    (result,) = published_results(folder)
    assert result.scales == (256,) and result.top1_error == 28.4
    assert np.isfinite(result.top5_error or np.nan)


def test_a_published_name_tells_the_order_of_channels(
    model: ConvNet, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a file whose digest nobody has published."""
    row = Published(
        name="a/b",
        network="vgg11",
        file="theirs.pth",
        lineage="oxford",
        channels="BGR",
        license=None,
    )
    monkeypatch.setitem(PUBLISHED, "a/b", row)
    monkeypatch.setenv("VGG_JAX_WEIGHTS", str(weights.parent / "cache"))
    kernel = model.conv1_1.kernel[...]
    model.conv1_1.kernel[...] = kernel[:, :, ::-1]
    cached = weights.parent / "cache/a/b/theirs.pth"
    cached.parent.mkdir(parents=True)
    save_weights(model, weights, names="torchvision")
    arrays = dict(safetensors.numpy.load_file(weights))
    safetensors.numpy.save_file(arrays, cached)  # without metadata
    folder = make_weights_folder("a/b", config())
    restored, settings, _ = restore_model(folder)
    np.testing.assert_array_equal(restored.conv1_1.kernel[...], kernel)
    assert settings.data.std == (1.0, 1.0, 1.0)


def test_an_order_of_channels_that_is_given_is_kept(
    model: ConvNet, weights: Path
) -> None:
    path = weights.with_name("theirs.weights.h5")
    save_weights(model, path, channels="BGR", class_names=list("abcdefg"))
    with h5py.File(path, "r+") as file:
        del file.attrs["vgg_jax"]
    with pytest.raises(ValueError, match="nothing tells whether its network takes"):
        make_weights_folder(str(path), config())
    (folder,) = chosen_folders(None, str(path), config(), channels="BGR")
    assert read_facts(folder)["channels"] == "BGR"  # type: ignore[index]
    restored, _, _ = restore_model(folder)
    chex.assert_trees_all_equal(
        nnx.to_pure_dict(nnx.state(restored)), nnx.to_pure_dict(nnx.state(model))
    )


def test_names_of_other_classes_are_not_kept(model: ConvNet, weights: Path) -> None:
    save_weights(model, weights, class_names=list("abcdefg"))
    folder = make_weights_folder(str(weights), config(num_classes=9))
    assert read_class_names(folder) is None
    folder.rmtree()
    folder = make_weights_folder(str(weights), config())
    assert read_class_names(folder) == tuple("abcdefg")


def test_a_digest_of_the_weights_is_computed_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    compute = published._compute_digest

    def count(path: epath.Path, algorithm: str) -> str:
        computed.append(algorithm)
        return compute(path, algorithm)

    monkeypatch.setattr(published, "_compute_digest", count)
    row = Published(
        name="a/b",
        network="vgg11",
        file=weights.name,
        size=weights.stat().st_size,
        digest=f"sha256:{compute(epath.Path(weights), 'sha256')}",
        lineage="torchvision",
        channels="RGB",
        license=None,
    )
    monkeypatch.setitem(PUBLISHED, "a/b", row)
    folder = make_weights_folder(str(weights), config())
    restore_model(folder)
    assert read_facts(folder)["lineage"] == "torchvision"  # type: ignore[index]
    assert computed == ["sha256"]


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("predict", ["a.png"]),
        ("eval", ["--config=configs/vgg16.py"]),
        ("vgg_jax.explain.__main__", ["a.png"]),
        ("vgg_jax.export.__main__", ["--format=onnx", "a.onnx"]),
    ],
)
def test_every_flag_about_weights_reaches_them(
    module: str,
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(weights: str, config: object, source: str, channels: str) -> None:
        raise ValueError(f"{weights}, {source}, {channels}")

    monkeypatch.setattr(weights_folder, "make_weights_folder", refuse)
    flags = ["--weights=theirs", "--source=oxford", "--channels=BGR"]
    more = [str(tmp_path / word) if word == "a.onnx" else word for word in more]
    assert importlib.import_module(module).main([*flags, *more]) == 1
    assert "theirs, oxford, BGR" in capsys.readouterr().err

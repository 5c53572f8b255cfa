"""What is written is read again bit by bit, and has the layout that others read."""

import json
from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.weights.networks import assert_same_weights, random_network
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights import load_weights, save_weights
from vgg_jax.weights.published import file_digest

MINE = Normalization(mean=(1.5, 2.5, 1 / 3), std=(4.0, 5.0, 6.0))


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize(
    ("network", "file", "names"),
    [
        ("vgg16_bn", "a.safetensors", "timm"),
        ("vgg19", "a.safetensors", "torchvision"),
        ("vgg16_c", "a.safetensors", "vgg_jax"),
        ("nin_cifar", "a.safetensors", "vgg_jax"),
        ("vgg11_bn", "a.weights.h5", "keras"),
    ],
)
def test_what_is_written_is_read_bit_by_bit(
    network: str, file: str, names: str, channels: str, tmp_path: Path
) -> None:
    theirs, ours = random_network(network), random_network(network, seed=1)
    options = {} if names == "keras" else {"names": names}
    save_weights(theirs, tmp_path / file, channels=channels, **options)
    loaded = load_weights(ours, tmp_path / file)
    assert loaded.naming == names and not loaded.kept and not loaded.unused
    assert_same_weights(theirs, ours)


def test_timms_names_and_shapes(tmp_path: Path) -> None:
    model = random_network("vgg11_bn", fc_features=64)
    save_weights(model, tmp_path / "a.safetensors")
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["features.0.weight"] == (4, 3, 3, 3)
    assert shapes["features.1.running_var"] == (4,)
    assert shapes["features.1.num_batches_tracked"] == ()
    assert shapes["pre_logits.fc1.weight"] == (4, 32, 7, 7)
    assert shapes["pre_logits.fc2.weight"] == (4, 4, 1, 1)
    assert shapes["head.fc.weight"] == (5, 4)
    kernel = np.asarray(model.fc6.kernel[...])
    assert arrays["pre_logits.fc1.weight"][3, 30, 6, 2] == kernel[6, 2, 30, 3]


def test_torchvisions_matrix_takes_channels_first(tmp_path: Path) -> None:
    model = random_network("vgg11", fc_features=64)
    save_weights(model, tmp_path / "a.safetensors", names="torchvision")
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert arrays["classifier.0.weight"].shape == (4, 32 * 7 * 7)
    kernel = np.asarray(model.fc6.kernel[...])
    place = 30 * 49 + 6 * 7 + 2
    assert arrays["classifier.0.weight"][3, place] == kernel[6, 2, 30, 3]


@pytest.mark.parametrize("ending", ["safetensors", "weights.h5"])
def test_the_metadata_say_what_is_known(tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"first.{ending}", tmp_path / "second.safetensors"
    names = [f"class {i}" for i in range(10_000)]
    model = random_network(num_classes=len(names))
    save_weights(model, first, normalization=MINE, class_names=names)
    loaded = load_weights(model, first)
    assert loaded.normalization == MINE and loaded.class_names == tuple(names)
    save_weights(model, second, loaded=loaded)
    again = load_weights(model, second)
    assert again.normalization == MINE and again.class_names == tuple(names)
    with safetensors.safe_open(second, "np") as file:
        metadata = file.metadata()
    assert metadata["source"] == str(first) and metadata["format"] == "pt"
    assert metadata["source_sha256"] == file_digest(first)


def test_keras_reads_layers_by_class_and_number(tmp_path: Path) -> None:
    model = random_network("vgg11_bn", fc_features=64)
    save_weights(model, tmp_path / "a.weights.h5", normalization=MINE)
    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert json.loads(file.attrs["vgg_jax"])["channels"] == "RGB"
        layers = file["layers"]
        assert {name.rstrip("_0123456789") for name in layers} == {
            "conv2d",
            "batch_normalization",
            "dense",
        }
        assert layers["conv2d_1/vars"].attrs["name"] == "block2_conv1"
        kernel, bias = (layers["conv2d_1/vars"][i][:] for i in "01")
        np.testing.assert_array_equal(kernel, model.conv2_1.kernel[...])
        np.testing.assert_array_equal(bias, model.conv2_1.bias[...])
        order = ("scale", "bias", "mean", "var")
        for i, name in enumerate(order):
            np.testing.assert_array_equal(
                layers["batch_normalization/vars"][str(i)],
                getattr(model.bn1_1, name)[...],
            )
        matrix = layers["dense/vars/0"][:]  # rows of a map, then columns, channels
        np.testing.assert_array_equal(
            matrix, model.fc6.kernel[...].reshape(7 * 7 * 32, 4)
        )


def test_class_names_of_another_head_are_left_out(tmp_path: Path) -> None:
    names = list("abcde")
    save_weights(random_network(), tmp_path / "5.safetensors", class_names=names)
    model = random_network(num_classes=3, seed=1)
    loaded = load_weights(model, tmp_path / "5.safetensors")
    save_weights(model, tmp_path / "3.safetensors", loaded=loaded)
    assert load_weights(model, tmp_path / "3.safetensors").class_names is None
    with pytest.raises(ValueError, match="the names of 3 classes, got 5"):
        save_weights(model, tmp_path / "3.safetensors", class_names=names)


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = random_network()
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.weights\.h5"):
        save_weights(model, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="did you mean 'torchvision'"):
        save_weights(model, tmp_path / "a.safetensors", names="torchvison")
    with pytest.raises(ValueError, match="did you mean 'BGR'"):
        save_weights(model, tmp_path / "a.safetensors", channels="bgr")


@pytest.mark.parametrize("name", ["a.safetensors", "a.weights.h5"])
def test_an_error_leaves_the_old_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(random_network(), tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(random_network(seed=1), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_half_precision_is_written_as_it_is_computed_with(tmp_path: Path) -> None:
    model = random_network(dtype="bfloat16")
    save_weights(model, tmp_path / "a.safetensors")
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    assert model.conv1_1.kernel[...].dtype == jnp.float32

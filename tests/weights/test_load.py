"""Networks take weights under the names and in the axes of others."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vgg_jax import create_model
from vgg_jax.models import ConvNet
from vgg_jax.weights import load_weights


def network(name: str = "vgg16", seed: int = 0, **options: object) -> ConvNet:
    options = {"num_classes": 5, "width": 1 / 16, **options}
    return create_model(name, rngs=jax.random.key(seed), **options)


def as_in_torch(model: ConvNet) -> dict[str, np.ndarray]:
    """The arrays of a network as torchvision names them."""
    arrays = {}
    part, first = "features", 0
    for i, row in enumerate(model.layers):
        if row.name == "fc6":
            part, first = "classifier", i
        module = getattr(model, row.name, None)
        if module is None or row.name.startswith("drop"):
            continue
        name = f"{part}.{i - first}"
        if row.name.startswith("bn"):
            for ours, theirs in (
                ("scale", "weight"),
                ("bias", "bias"),
                ("mean", "running_mean"),
                ("var", "running_var"),
            ):
                arrays[f"{name}.{theirs}"] = np.asarray(getattr(module, ours)[...])
            arrays[f"{name}.num_batches_tracked"] = np.int64(3)
            continue
        kernel = np.asarray(module.kernel[...]).transpose(3, 2, 0, 1)
        if part == "classifier":
            kernel = kernel.reshape(len(kernel), -1)
        arrays[f"{name}.weight"] = kernel
        arrays[f"{name}.bias"] = np.asarray(module.bias[...])
    return arrays


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg19_bn"])
def test_torchvisions_names(name: str) -> None:
    theirs, ours = network(name, 0), network(name, 1)
    loaded = load_weights(ours, as_in_torch(theirs))
    assert loaded.naming == "torchvision" and not loaded.kept and not loaded.unused
    images = jax.random.normal(jax.random.key(2), (2, 224, 224, 3))
    np.testing.assert_array_equal(ours(images), theirs(images))


def test_another_number_of_classes_keeps_the_head() -> None:
    ours = network(num_classes=3, seed=1)
    before = ours.fc8.kernel[...]
    loaded = load_weights(ours, as_in_torch(network()))
    assert loaded.kept == ("fc8",)
    np.testing.assert_array_equal(ours.fc8.kernel[...], before)


def test_a_backbone_takes_what_it_has() -> None:
    ours = network(num_classes=None, seed=1)
    loaded = load_weights(ours, as_in_torch(network()))
    assert not loaded.kept
    assert loaded.unused == ("classifier.0", "classifier.3", "classifier.6")


def test_another_network_is_an_error_that_lists_both() -> None:
    ours = network("vgg13", seed=1)
    before = nnx.to_pure_dict(nnx.state(ours))
    with pytest.raises(ValueError, match="does not have the weights of") as error:
        load_weights(ours, as_in_torch(network()))
    assert "conv4_1: expected under the name 'features.15'" in str(error.value)
    assert "'features.26' of the file: no layer of this" in str(error.value)
    after = nnx.to_pure_dict(nnx.state(ours))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_values_that_are_no_numbers() -> None:
    arrays = as_in_torch(network())
    arrays["classifier.6.bias"] = np.full(5, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"5 of the 5 values of fc8\.bias are not"):
        load_weights(network(seed=1), arrays)
    load_weights(network(seed=1, num_classes=3), arrays)


def test_a_file_of_two_networks_is_refused() -> None:
    arrays = {
        f"{part}.{name}": array
        for seed, part in enumerate(("student", "teacher"))
        for name, array in as_in_torch(network("vgg11", seed)).items()
    }
    with pytest.raises(ValueError, match=r"several, with 'student.', 'teacher.' be"):
        load_weights(network("vgg11", 2), arrays)


def test_quantized_weights_are_refused() -> None:
    arrays = {
        name: (100 * array).astype(np.int8)
        for name, array in as_in_torch(network("vgg11")).items()
    }
    with pytest.raises(ValueError, match=r"values of conv1_1.kernel, got int8"):
        load_weights(network("vgg11", 1), arrays)


def test_a_tree_of_flax_is_a_mapping_too() -> None:
    theirs, ours = network(), network(seed=1)
    tree = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    loaded = load_weights(ours, {"params": tree})
    assert loaded.naming == "vgg_jax" and not loaded.kept
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(ours, nnx.Param)),
        tree,
    )


def test_mappings_of_other_things_are_refused() -> None:
    arrays = as_in_torch(network())
    for wrong, message in (
        ({3: arrays["features.0.bias"]}, "expected names, got 3"),
        ({"features.0.bias": "text"}, r"conv1_1\.bias: expected \(4,\), got \(\)"),
        ({"features.0.bias": [object()]}, r"numbers as features\.0\.bias, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(network(seed=1), arrays | wrong)


def test_values_beyond_float32_are_refused() -> None:
    arrays = as_in_torch(network())
    arrays["features.0.bias"] = np.full(4, 1e300)
    with pytest.raises(ValueError, match=r"4 of the 4 values of conv1_1\.bias are not"):
        load_weights(network(seed=1), arrays)


def test_names_of_another_number_of_classes_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    arrays = {n: np.ascontiguousarray(a) for n, a in as_in_torch(network()).items()}
    for names in ('["a", "b", "c", "d", "e"]', '["a", "b"]'):
        safetensors.numpy.save_file(arrays, path, {"class_names": names})
        for classes in (5, 3):
            loaded = load_weights(network(seed=1, num_classes=classes), path)
            if len(names) > 12:
                assert loaded.class_names == tuple("abcde") and loaded.notes == ()
                continue
            assert loaded.class_names is None
            (note,) = loaded.notes
            assert "left out: expected 5, one an output, got 2" in note
            assert note in str(loaded)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (("config.json", "model.safetensors"), r"from_pretrained\('.*/folder'\) makes"),
        (("config.json", "checkpoints/1/_CHECKPOINT_METADATA"), "as --workdir, .*rest"),
        (("config.json", "weights.json"), "convert .*folder OUT.safetensors"),
        (("_CHECKPOINT_METADATA",), "a checkpoint of Orbax"),
        ((), "a folder of something else"),
    ],
)
def test_a_folder_is_answered_with_what_takes_it(
    tmp_path: Path, files: tuple[str, ...], advice: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in files:
        os.makedirs((folder / file).parent, exist_ok=True)
        (folder / file).touch()
    expected = f"^{folder}: expected a file of weights, got .*{advice}"
    with pytest.raises(ValueError, match=expected) as error:
        load_weights(network(seed=1), folder)
    assert "\n" not in str(error.value)

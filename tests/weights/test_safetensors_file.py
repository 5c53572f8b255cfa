import json
import pathlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.weights.test_torch_file import FILES, refuse
from vgg_jax.weights import formats
from vgg_jax.weights.contents import HWIO, OIHW

ARRAYS = {
    "conv1_1.kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2),
    "conv1_1.bias": np.zeros(2, np.float32),
    "bn1_1.scale": np.ones(2, np.float32),
}


def write(folder: pathlib.Path, header: object, data: bytes = b"") -> pathlib.Path:
    path = folder / "model.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_names_of_this_library_have_its_axes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    contents = formats.read(str(path))
    assert contents.format == "safetensors" and contents.axes == HWIO
    kernel = contents.layers["conv1_1"]["kernel"]
    np.testing.assert_array_equal(kernel, ARRAYS["conv1_1.kernel"])
    assert not kernel.flags.owndata  # it stays in the file
    assert contents.layers["bn1_1"]["scale"].shape == (2,)


def test_metadata(tmp_path: pathlib.Path) -> None:
    contents = formats.read(str(FILES / "vgg11.safetensors"))
    assert contents.axes == OIHW and contents.class_names == ("cat", "dog")
    assert contents.metadata["lineage"] == "torchvision"
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"axes": OIHW})
    assert formats.read(str(path)).axes == OIHW


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"axes": "chwn"}, "expected oihw or hwio"),
        ({"channels": "bgr"}, "expected RGB or BGR"),
        ({"class_names": '"cat"'}, "JSON list of text"),
        ({"class_names": "[["}, "Expecting value"),
        ({"normalization": '{"mean": [1, 2, 3], "std": [1, 2]}'}, "as many values"),
        ({"normalization": '{"average": 3}'}, "average"),
        ({"normalization": "3"}, "a list of numbers each"),
        ({"normalization": '{"mean": [NaN], "std": [1]}'}, "expected finite means"),
        ({"normalization": '{"mean": [1], "std": [0]}'}, "deviations above 0"),
        ({"normalization": '{"mean": [1e999], "std": [1]}'}, "expected finite means"),
        ({"normalization": '{"mean": [1], "std": [Infinity]}'}, "deviations above 0"),
        ({"normalization": '{"\\u001b[2J": 3}'}, "'?[2J'"),
    ],
)
def test_metadata_of_another_kind(
    tmp_path: pathlib.Path, metadata: dict[str, str], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata=metadata)
    assert ("get it anew" in refuse(path, words)) == ("[[" in str(metadata))


EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": entry([2], 0, 8)}, EIGHT[1:], id="not whole"),
        pytest.param({"a": entry([2], 0, 8)}, EIGHT + b"1", id="more than declared"),
        pytest.param({"a": entry([1], 0, 4)}, EIGHT, id="bytes of no array"),
        pytest.param({"a": entry([1], 4, 8)}, EIGHT, id="a gap at the beginning"),
        pytest.param(
            {"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, EIGHT, id="two overlap"
        ),
        pytest.param(
            {"a": entry([3], 0, 8)}, EIGHT, id="another size than its shape's"
        ),
        pytest.param({"a": entry([-2], 0, -8)}, EIGHT, id="below zero"),
        pytest.param({"a": entry([2**62], 0, 2**64)}, EIGHT, id="huge"),
        pytest.param({"a": entry([2**40, 2**40, 0], 0, 0)}, b"", id="huge and empty"),
        pytest.param({"a": entry([1], 0, 8, "F8_E4M3")}, EIGHT, id="another type"),
        pytest.param(
            b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
            b' "a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}',
            EIGHT,
            id="a name twice",
        ),
        pytest.param({"a": 1}, b"", id="no entry"),
        pytest.param({"__metadata__": {"a": 1}}, b"", id="metadata that are no text"),
        pytest.param(b'{"a":' + b"[" * 100_000, b"", id="deep"),
        pytest.param(b"{", b"", id="no JSON"),
    ],
)
def test_what_the_library_refuses_is_refused(
    tmp_path: pathlib.Path, header: object, data: bytes
) -> None:
    path = write(tmp_path, header, data)
    with pytest.raises((safetensors.SafetensorError, AttributeError)):
        safetensors.numpy.load_file(path)
    refuse(path)

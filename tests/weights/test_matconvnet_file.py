"""Networks of MatConvNet fill ours; both of its layouts, as SciPy writes them."""

import pathlib
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import scipy.io

from tests.torture.isolated import measure
from tests.weights.networks import Layers, assert_has, drawn, network
from vgg_jax.weights import load_weights
from vgg_jax.weights.formats import read

RGB = (123.68, 116.779, 103.939)
NAMES = ["tench, Tinca tinca", "goldfish", "great white shark", "a", "Gött"]


def cells(values: list[object]) -> np.ndarray:
    """A cell array of one row."""
    array = np.empty((1, len(values)), object)
    array[0] = values
    return array


def of_today(layers: Layers, mean: tuple[float, ...] = RGB) -> dict[str, object]:
    rows = []
    for row, arrays in layers.items():
        bias = arrays["bias"].reshape(-1, 1)
        weights = cells([arrays["kernel"], bias])
        rows += [
            {"name": row, "type": "conv", "weights": weights, "stride": [[1.0, 1.0]]},
            {"name": f"relu_{row}", "type": "relu"},
            {"name": f"pool_{row}", "type": "pool", "weights": cells([])},
        ]
    normalization = {
        "imageSize": np.float64([[224, 224, 3]]),
        "averageImage": np.float32(mean).reshape(1, 1, 3),
    }
    return {
        "layers": cells(rows),
        "meta": {
            "normalization": normalization,
            "classes": {"name": cells(["n0144"]), "description": cells(NAMES)},
        },
    }


def of_old(layers: Layers, mean: tuple[float, ...] = RGB) -> dict[str, object]:
    """As before `meta`, with another order of fields."""
    rows = []
    for row, arrays in layers.items():
        own = {"filters": arrays["kernel"], "biases": arrays["bias"].reshape(1, -1)}
        rows.append({"type": "conv", **own, "pad": 1.0, "name": row})
        rows.append({"type": "relu", "name": f"relu_{row}"})
    image = np.broadcast_to(np.float32(mean), (224, 224, 3))
    return {
        "normalization": {"averageImage": image, "keepAspect": 1.0},
        "classes": {"description": cells(NAMES)},
        "layers": cells(rows),
    }


@pytest.mark.parametrize("encode", [of_today, of_old])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_network_of_each_generation(
    tmp_path: pathlib.Path,
    encode: Callable[[Layers], dict[str, object]],
    is_compressed: bool,
) -> None:
    path = tmp_path / "imagenet-vgg-verydeep-16.mat"
    model = network("vgg16", width=1 / 32)
    layers = drawn(model)
    variables = encode(layers)
    scipy.io.savemat(path, variables, do_compression=is_compressed)
    loaded = load_weights(model, path)
    assert_has(model, layers)
    assert (loaded.format, loaded.kept, loaded.unused) == ("matconvnet", (), ())
    assert loaded.class_names == tuple(NAMES)
    assert loaded.normalization is not None
    np.testing.assert_allclose(loaded.normalization.mean, RGB, rtol=1e-5)
    assert loaded.evidence.endswith("mean color is ImageNet's in the order RGB")


def test_a_last_axis_of_one_that_matlab_drops(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "narrow.mat"
    model = network("vgg11", width=1 / 64, num_classes=None)  # conv1_1 has one filter
    layers = drawn(model)
    variables = of_today(
        layers
        | {
            "conv1_1": {
                k: a[..., 0] if k == "kernel" else a
                for k, a in layers["conv1_1"].items()
            }
        }
    )
    scipy.io.savemat(path, {"net": variables})
    load_weights(model, path)
    assert_has(model, layers)


def test_the_mean_color_tells_the_order_of_channels(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bgr.mat"
    model = network("vgg11", num_classes=None)
    layers = drawn(model)
    scipy.io.savemat(path, of_today(layers, RGB[::-1]))
    loaded = load_weights(model, path)
    first = layers["conv1_1"]
    expected = first | {"kernel": first["kernel"][:, :, ::-1]}
    assert_has(model, layers | {"conv1_1": expected})
    assert loaded.normalization is not None
    np.testing.assert_allclose(loaded.normalization.mean, RGB, rtol=1e-5)
    # Oxford's own files are BGR; this one says of itself what it is.
    scipy.io.savemat(path, of_today(layers))
    assert load_weights(model, path, source="oxford").lineage == "oxford"
    assert_has(model, layers)


def test_a_mean_image_of_gray_is_one_channel(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gray.mat"
    model = network("vgg11", num_classes=None, in_channels=1)
    variables = of_old(drawn(model))
    gray = np.broadcast_to(np.float32([[90], [110]]), (2, 28))
    scipy.io.savemat(path, variables | {"normalization": {"averageImage": gray}})
    loaded = load_weights(model, path)
    assert loaded.normalization is not None and loaded.normalization.mean == (100.0,)


def test_batch_normalization_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bn.mat"
    one = np.ones((1, 1), np.float32)
    row = {"name": "bn1", "type": "bnorm", "weights": cells([one, one, one])}
    scipy.io.savemat(path, {"layers": cells([row])})
    with pytest.raises(ValueError, match="got bn1 of the type 'bnorm'"):
        read(path)


def test_other_files_of_matlab(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.mat"
    scipy.io.savemat(path, {"images": np.zeros(3), "names": "a"})
    with pytest.raises(ValueError, match="got the variables images, names"):
        read(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF")
    with pytest.raises(ValueError, match=r"save\(NAME, '-struct', 'net', '-v7'\)"):
        read(path)


def element(kind: int, data: bytes, size: int | None = None) -> bytes:
    padded = data + bytes(-len(data) % 8)
    return struct.pack("<II", kind, len(data) if size is None else size) + padded


def matrix(kind: int, shape: tuple[int, ...], *parts: bytes) -> bytes:
    dimensions = element(5, struct.pack(f"<{len(shape)}i", *shape))
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + dimensions + element(1, b"layers") + b"".join(parts))


def nested(depth: int) -> bytes:
    inner = matrix(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = matrix(1, (1, 1), inner)
    return inner


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (matrix(6, (2**31 - 1, 2**31 - 1), element(9, bytes(8))), "expected 4,611,686"),
        (matrix(7, (1, 1), element(7, b"", 2**32 - 8)), "bytes of an array"),
        (matrix(1, (2**31 - 1,) * 8), "arrays within an array, got 0"),
        (matrix(2, (2**31 - 1, 4), element(5, b"\1\0\0\0"), element(1, b"")), "cell"),
        (matrix(2, (1, 1), element(5, bytes(4)), element(1, b"a")), "one letter"),
        (matrix(6, (-1, 2), element(9, b"")), "an array's shape"),
        (matrix(6, (1,) * 40, element(9, bytes(8))), "an array's shape"),
        (nested(30), "within each other"),
        (element(15, zlib.compress(bytes(2**26))), "expands to 8 times"),
        (element(15, b"no compressed data"), "damaged"),
        (element(14, b"\6\0\0\0"), "damaged"),
        (element(3, bytes(8)), "expected a variable"),
    ],
)
def test_a_damaged_file_is_one_line_and_takes_no_memory(
    tmp_path: pathlib.Path, variable: bytes, message: str
) -> None:
    path = tmp_path / "damaged.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + variable)
    error, effort = measure(lambda: read(path))
    assert isinstance(error, ValueError)
    assert re.match(rf"{re.escape(str(path))}: [^\n]*({message})[^\n]*$", str(error))
    assert effort.peak_bytes < 50 * 2**20

"""Networks of Caffe fill ours, whichever of its generations saved them."""

import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.weights import caffe
from tests.weights.caffe import blob, field, layer, layer_v0, layer_v1
from tests.weights.networks import Layers, assert_has, drawn, network
from vgg_jax.weights import load_weights
from vgg_jax.weights.formats import read

WIDE = {"conv4": "conv4-1024", "cccp7": "cccp7-1024", "cccp8": "cccp8-1024"}


def is_dense(row: str) -> bool:
    return row.startswith("fc")


def in_caffes_axes(row: str, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    kernel = arrays["kernel"].transpose(3, 2, 0, 1)
    if is_dense(row):
        kernel = kernel.reshape(len(kernel), -1)
    return [kernel, arrays["bias"]]


def of_v0(layers: Layers) -> bytes:
    """As the first Caffe saved them, with values one by one."""
    return field(1, "CaffeNet") + b"".join(
        layer_v0(
            row,
            "innerproduct" if is_dense(row) else "conv",
            [
                blob(array, is_old=True, is_packed=False)
                for array in in_caffes_axes(row, arrays)
            ],
        )
        for row, arrays in layers.items()
    )


def of_v1(layers: Layers) -> bytes:
    """As the files of Oxford's VGG and of the zoo are."""
    network = field(1, "VGG_ILSVRC_16_layers")
    for row, arrays in layers.items():
        kind = caffe.INNER_PRODUCT if is_dense(row) else caffe.CONVOLUTION
        blobs = [blob(array, is_old=True) for array in in_caffes_axes(row, arrays)]
        network += layer_v1(WIDE.get(row, row), kind, blobs)
        network += layer_v1(f"relu_{row}", caffe.RELU, [])
    return network


def of_today(layers: Layers, **options: bool) -> bytes:
    network = layer("data", "Input", [])
    for row, arrays in layers.items():
        kind = "InnerProduct" if is_dense(row) else "Convolution"
        blobs = [blob(array, **options) for array in in_caffes_axes(row, arrays)]
        network += layer(row, kind, blobs) + layer(f"relu_{row}", "ReLU", [], row, row)
    return network


def one_by_one(layers: Layers) -> bytes:
    return of_today(layers, is_packed=False)


def in_doubles(layers: Layers) -> bytes:
    return of_today(layers, is_double=True)


def doubles_one_by_one(layers: Layers) -> bytes:
    return of_today(layers, is_double=True, is_packed=False)


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("vgg16", of_v1),
        ("vgg19", of_today),
        ("nin_cifar", of_v0),
        ("nin_cifar", of_v1),
        ("nin_cifar", one_by_one),
        ("nin_cifar", in_doubles),
        ("nin_cifar", doubles_one_by_one),
        ("nin_imagenet", of_v1),
    ],
)
def test_a_network_of_each_generation(
    tmp_path: pathlib.Path, name: str, encode: Callable[[Layers], bytes]
) -> None:
    path = tmp_path / "net.caffemodel"
    model = network(name, width=1 / 32)
    layers = drawn(model)
    path.write_bytes(encode(layers))
    loaded = load_weights(model, path, channels="RGB")
    assert_has(model, layers)
    assert (loaded.format, loaded.kept, loaded.unused) == ("caffe", (), ())
    assert loaded.naming == ("caffe" if name == "nin_imagenet" else "vgg_jax")


@pytest.mark.parametrize("name", ["vgg16", "nin_imagenet"])
def test_a_backbone_leaves_the_classifier(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "net.caffemodel"
    layers = drawn(network(name, width=1 / 32))
    path.write_bytes(of_v1(layers))
    backbone = network(name, width=1 / 32, num_classes=None)
    loaded = load_weights(backbone, path, channels="RGB")
    last = ("fc6", "fc7", "fc8") if name == "vgg16" else ("conv4", "cccp7", "cccp8")
    assert loaded.unused == tuple(WIDE.get(row, row) for row in last)
    assert_has(backbone, {row: a for row, a in layers.items() if row not in last})


def test_batch_normalization_is_two_layers_there(tmp_path: pathlib.Path) -> None:
    model = network("vgg11_bn", width=1 / 32, num_classes=None)
    layers = drawn(model)
    encoded = b""
    for row, arrays in layers.items():
        if row.startswith("conv"):
            encoded += layer(
                row, "Convolution", [blob(a) for a in in_caffes_axes(row, arrays)]
            )
            continue
        bottom = row.replace("bn", "conv")
        # The sums of four batches, whose quarter is exact.
        sums = [4 * arrays["mean"], 4 * arrays["var"], np.float32([4])]
        encoded += layer(row, "BatchNorm", [blob(a) for a in sums], bottom, row)
        scales = [blob(arrays["scale"]), blob(arrays["bias"])]
        encoded += layer(row.replace("bn", "scale"), "Scale", scales, row, row)
    path = tmp_path / "bn.caffemodel"
    path.write_bytes(encoded)
    loaded = load_weights(model, path, channels="RGB")
    assert_has(model, layers)
    assert loaded.unused == ()


def test_arrays_of_other_layers_are_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.caffemodel"
    one = np.ones((1, 1, 1, 1), np.float32)
    path.write_bytes(
        layer("conv1", "Convolution", [blob(one)])
        + layer("prelu1", "PReLU", [blob(one)])
        + layer("scale1", "Scale", [blob(one)])
    )
    assert read(path).others == ("prelu1 (PReLU)", "scale1 (Scale)")


def kernel_of(shape: tuple[int, ...], values: int = 4) -> bytes:
    """A convolution whose blob has another shape than values."""
    return layer("conv1", "Convolution", [blob(np.ones(values, np.float32), shape)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (blob(np.ones((3, 8, 8)), is_old=True), "mean of its data"),
        (field(1, "empty"), "got no weights"),
        (kernel_of((2**20, 2**20, 2**20, 2**3)), "expected 9,223,372,036,854,775,808 "),
        (kernel_of((2**63, 2**63, 4, 1)), "expected 340,282,366,920,938,463,"),
        (kernel_of((0, 2**62)), "sizes above 0"),
        (kernel_of((1,) * 70 + (4,)), "up to four sizes"),
        (kernel_of((1, 1, 2, 2))[:-9], "bytes of a field"),
        (
            field(1, "net")
            + b"\xa2\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "ten bytes",
        ),
        (field(1, "net") + b"\xa3\x06", "unknown kind 3"),
        (field(1, "net") + field(100, 3), "expected a message"),
        (field(1, "net") + b"\xa2", "damaged"),
    ],
)
def test_what_is_no_network_is_one_line(
    tmp_path: pathlib.Path, data: bytes, message: str
) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert re.match(rf"{re.escape(str(path))}: [^\n]+$", str(error.value))

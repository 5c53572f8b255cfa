"""The first filters of known weights tell whose they are, and in which order."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from flax import nnx

from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv
from vgg_jax.weights.contents import HWIO, Contents
from vgg_jax.weights.lineage import (
    CHANNELS,
    FORMATS_OF_BOTH_ORDERS,
    LINEAGES,
    OXFORD,
    channels_of_mean,
    exchange_red_and_blue,
    recognize,
)
from vgg_jax.weights.load import fill
from vgg_jax.weights.published import PUBLISHED

KNOWN = [name for name, lineage in LINEAGES.items() if lineage.first_filter]


def first_layer(name: str) -> dict[str, np.ndarray]:
    """A first convolution in RGB whose known values are those of a lineage."""
    lineage = LINEAGES[name]
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 64)).astype(np.float32)
    bias = np.zeros(64, np.float32)
    for place, value in lineage.first_filter.items():
        kernel[*place, 0] = value
    bias[: len(lineage.bias)] = lineage.bias
    return {"kernel": kernel, "bias": bias}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_every_order_is_recognized_and_made_ours(
    name: str, channels: str, is_transposed: bool
) -> None:
    expected = first_layer(name)
    kernel = expected["kernel"]
    if channels == "BGR":
        kernel = kernel[:, :, ::-1]
    if is_transposed:
        kernel = kernel.swapaxes(0, 1)
    origin = recognize(kernel, expected["bias"])
    assert origin is not None
    assert (origin.lineage, origin.channels) == (name, channels)
    assert origin.transposed == is_transposed
    model = ConvNet([Conv("conv1_1", 64, 3, padding=1)], rngs=jax.random.key(0))
    contents = Contents(
        format="keras", layers={"conv1_1": expected | {"kernel": kernel}}, axes=HWIO
    )
    loaded = fill(model, contents, "weights.h5")
    assert loaded.lineage == name
    assert loaded.normalization == LINEAGES[name].normalization
    np.testing.assert_array_equal(model.conv1_1.kernel[...], expected["kernel"])


@pytest.mark.parametrize("name", KNOWN)
def test_half_precision_is_enough_and_another_value_is_not(name: str) -> None:
    layer = first_layer(name)
    half = {key: array.astype(np.float16) for key, array in layer.items()}
    assert recognize(half["kernel"], half["bias"]) is not None
    for place in LINEAGES[name].first_filter:
        kernel = layer["kernel"].copy()
        kernel[*place, 0] += 0.01
        assert recognize(kernel, layer["bias"]) is None
    assert recognize(layer["kernel"], layer["bias"] + 0.01) is None


def test_a_name_that_the_values_deny_is_an_error() -> None:
    model = ConvNet([Conv("conv1_1", 64, 3, padding=1)], rngs=jax.random.key(0))
    contents = Contents(
        format="keras", layers={"conv1_1": first_layer("oxford")}, axes=HWIO
    )
    with pytest.raises(ValueError, match="give source='oxford'"):
        fill(model, contents, "weights.h5", source="torchvision")


def test_the_mean_color_of_imagenet_tells_the_order() -> None:
    assert channels_of_mean(OXFORD.mean) == "RGB"
    assert channels_of_mean(OXFORD.mean[::-1]) == "BGR"
    assert channels_of_mean((122.7, 116.7, 104.0)) == "RGB"
    assert channels_of_mean((128.0, 128.0, 128.0)) is None
    assert channels_of_mean((120.0,)) is None
    assert channels_of_mean(None) is None


@functools.cache
def one_layer(channels: int = 3) -> ConvNet:
    """A network of one convolution, without values."""
    rows = [Conv("conv1_1", 2, 3)]
    return nnx.eval_shape(
        lambda: ConvNet(rows, in_channels=channels, rngs=jax.random.key(0))
    )


def unknown(
    format: str, channels: int = 3, **facts: object
) -> tuple[ConvNet, Contents, np.ndarray]:
    """A network, contents that fill it with a kernel that nobody knows, and that."""
    kernel = np.arange(18.0 * channels, dtype=np.float32).reshape(3, 3, channels, 2)
    layers = {"conv1_1": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    contents = Contents(format=format, layers=layers, axes=HWIO, **facts)  # type: ignore[arg-type]
    return one_layer(channels), contents, kernel


@pytest.mark.parametrize("format", FORMATS_OF_BOTH_ORDERS)
def test_an_order_that_nothing_tells_is_refused_until_it_is_given(format: str) -> None:
    model, contents, kernel = unknown(format)
    before = model.conv1_1.kernel.get_value()
    with pytest.raises(ValueError, match=r"^my\.file: .*channels='RGB' or") as error:
        fill(model, contents, "my.file")
    assert "--channels" in str(error.value) and "\n" not in str(error.value)
    assert model.conv1_1.kernel.get_value() is before
    for channels in CHANNELS:
        loaded = fill(model, contents, "my.file", channels=channels)
        assert loaded.evidence.endswith(f"given as channels={channels!r}")
        expected = kernel if channels == "RGB" else kernel[:, :, ::-1]
        np.testing.assert_array_equal(model.conv1_1.kernel[...], expected)
    with pytest.raises(ValueError, match="did you mean 'BGR'"):
        fill(model, contents, "my.file", channels="bgr")


@pytest.mark.parametrize(
    "facts",
    [
        {"metadata": {"channels": "BGR"}},
        {"mean": OXFORD.mean[::-1]},
        {"published": PUBLISHED["caffe/nin_cifar"]},
        {"source": "caffe"},
    ],
)
def test_an_order_that_something_tells_need_not_be_given(
    facts: Mapping[str, object],
) -> None:
    own = {name: facts[name] for name in facts if name in ("metadata", "mean")}
    model, contents, kernel = unknown("keras", **own)
    row = facts.get("published")
    load = functools.partial(
        fill, model, contents, "my.file", facts.get("source"), published=lambda: row
    )
    load()
    np.testing.assert_array_equal(model.conv1_1.kernel[...], kernel[:, :, ::-1])
    load(channels="BGR")
    if "source" in facts:  # which says what is usual there
        load(channels="RGB")
        np.testing.assert_array_equal(model.conv1_1.kernel[...], kernel)
        return
    with pytest.raises(ValueError, match=r"expected channels RGB, and .*; leave chan"):
        load(channels="RGB")


def test_an_order_that_the_first_filters_deny_is_refused() -> None:
    model = ConvNet([Conv("conv1_1", 64, 3, padding=1)], rngs=jax.random.key(0))
    layers = {"conv1_1": first_layer("oxford")}
    contents = Contents(format="keras", layers=layers, axes=HWIO)
    with pytest.raises(ValueError, match="expected channels BGR, and the first filter"):
        fill(model, contents, "weights.h5", channels="BGR")


@pytest.mark.parametrize("format", ["torch", "safetensors", "pickle", "mapping"])
def test_other_formats_are_taken_as_they_are(format: str) -> None:
    model, contents, kernel = unknown(format)
    loaded = fill(model, contents, "my.file")
    assert "channels are as in the file" in loaded.evidence
    np.testing.assert_array_equal(model.conv1_1.kernel[...], kernel)


@pytest.mark.parametrize(
    ("channels", "order"), [(1, [0]), (2, [0, 1]), (4, [2, 1, 0, 3])]
)
def test_only_the_three_colors_are_exchanged(channels: int, order: list[int]) -> None:
    mean = tuple(np.arange(10.0, 10 + channels))
    model, contents, kernel = unknown("keras", channels, mean=mean)
    fill(model, contents, "my.file")  # is none of RGB or BGR
    np.testing.assert_array_equal(model.conv1_1.kernel[...], kernel)
    loaded = fill(model, contents, "my.file", channels="BGR")
    np.testing.assert_array_equal(model.conv1_1.kernel[...], kernel[:, :, order])
    assert loaded.normalization is not None
    assert loaded.normalization.mean == tuple(10.0 + i for i in order)
    back = exchange_red_and_blue(exchange_red_and_blue(kernel, 2), 2)
    np.testing.assert_array_equal(back, kernel)


def test_a_mean_that_no_pixels_have_is_refused_by_the_files_name() -> None:
    model, contents, _ = unknown("matconvnet", mean=(np.nan,) * 3)
    with pytest.raises(
        ValueError, match=r"^my\.file: its normalization .* finite mean"
    ):
        fill(model, contents, "my.file", channels="RGB")


def test_a_normalization_of_other_channels() -> None:
    metadata = {"normalization": '{"mean": [1, 2, 3], "std": [1, 1, 1]}'}
    model, contents, _ = unknown("torch", 4, metadata=metadata)
    with pytest.raises(
        ValueError, match=r"^my\.file: expected .* of 4 channels, .* 3:"
    ):
        fill(model, contents, "my.file")
    model, contents, _ = unknown("torch", 4)
    assert fill(model, contents, "my.file", "torchvision").normalization is None

"""The first filters of known weights tell whose they are, and in which order."""

import jax
import numpy as np
import pytest

from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv
from vgg_jax.weights.contents import HWIO, Contents
from vgg_jax.weights.lineage import LINEAGES, OXFORD, channels_of_mean, recognize
from vgg_jax.weights.load import fill

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

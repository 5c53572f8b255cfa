"""Descriptors against the network's features, averaged by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from tests.models import drawn
from vgg_jax.data.transforms import rescale
from vgg_jax.features.descriptors import combine_scales, last_hidden
from vgg_jax.inference.forward import Network, Pooled
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


def network(**options) -> ConvNet:
    settings = {"width": 0.03, "fc_kernel": 1, "num_classes": 5} | options
    return nnx.merge(*drawn.network("vgg11", **settings))


def by_hand(model: ConvNet, scale: int, layer: str) -> np.ndarray:
    image = rescale(IMAGE, scale)
    found = []
    for seen in (image, image[:, ::-1]):
        normalized = (seen.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
        maps = model.features(jnp.asarray(normalized[None]), (layer,))[layer]
        found.append(np.asarray(maps[0]).mean(axis=(0, 1)))
    return (found[0] + found[1]) / 2


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def test_mean_and_stack() -> None:
    model, scales = network(), (64, 100)
    ours = [by_hand(model, scale, "relu7") for scale in scales]
    assert not np.allclose(unit(ours[0]), unit(ours[1]), atol=1e-2)
    options = {"mean": MEAN, "std": STD}
    mean = vgg_jax.descriptor(model, IMAGE, scales, **options)
    np.testing.assert_allclose(mean, unit((ours[0] + ours[1]) / 2), atol=1e-5)
    assert mean.shape == (round(4096 * 0.03),) and mean.dtype == np.float32
    stack = vgg_jax.descriptor(model, IMAGE, scales, "stack", **options)
    np.testing.assert_allclose(stack, unit(np.concatenate(ours)), atol=1e-5)
    assert np.linalg.norm(stack) == pytest.approx(1)


def test_a_mirrored_image_has_the_same_descriptor() -> None:
    model = network()
    seen, mirrored = (
        vgg_jax.descriptor(model, image, (64,)) for image in (IMAGE, IMAGE[:, ::-1])
    )
    np.testing.assert_allclose(seen, mirrored, atol=1e-6)


def test_a_layer_of_another_network() -> None:
    model = network(head="global_pool")
    with pytest.raises(ValueError, match=r"no layer 'relu7'; .* is 'pool5'"):
        vgg_jax.descriptor(model, IMAGE, (64,))
    found = vgg_jax.descriptor(model, IMAGE, (64,), layer="pool5", mean=MEAN, std=STD)
    np.testing.assert_allclose(found, unit(by_hand(model, 64, "pool5")), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vgg16", "relu7"), ("vgg19_bn", "relu7"), ("nin_imagenet", "relu_cccp7")],
)
def test_the_last_layer_before_the_classes(name: str, expected: str) -> None:
    model = nnx.eval_shape(lambda: vgg_jax.create_model(name, rngs=nnx.Rngs(0)))
    assert last_hidden(model) == expected


def test_what_cannot_be_described_is_refused() -> None:
    model = network()
    for image, match in (
        (IMAGE.astype(float), r"uint8 \[H, W, 3\]"),
        (IMAGE[..., :1], r"got uint8 \[70, 90, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            vgg_jax.descriptor(model, image)
    with pytest.raises(ValueError, match="scales of at least 1 pixel"):
        vgg_jax.descriptor(model, IMAGE, ())
    with pytest.raises(ValueError, match=r"aggregate 'stak': did you mean 'stack'"):
        vgg_jax.descriptor(model, IMAGE, (64,), "stak")


def test_padding_changes_nothing() -> None:
    model = network()
    image = rescale(IMAGE, 64)
    height, width = image.shape[:2]
    padded = np.full((1, 96, 128, 3), 255, np.uint8)
    padded[0, :height, :width] = image
    described = Network.from_model(model, Normalization(MEAN, STD))
    found = described.run(Pooled(layer="relu7"), padded, np.int32([[height, width]]))
    expected = by_hand(model, 64, "relu7")
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_a_descriptor_of_zeros_stays_one() -> None:
    found = combine_scales([np.float32([[0, 0], [3, 4]])], "mean")
    np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8]], rtol=1e-6)

"""Boxes of cells are the boxes of crops, in the coordinates of the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax import boxes, create_model
from vgg_jax.localization.cell_boxes import (
    CellBoxes,
    CellRatings,
    cell_windows,
)
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, FullyConnected, MaxPool, Relu, receptive_fields

CLASSES, CROP = 3, 64


def network(outputs: int, **options) -> ConvNet:
    settings = {"width": 0.05, "fc_kernel": 2, "init": "he"} | options
    return nnx.eval_shape(
        lambda: create_model(
            "vgg11", num_classes=outputs, in_channels=1, rngs=nnx.Rngs(1), **settings
        )
    )


def test_what_cells_see():
    layers = network(4).layers
    assert receptive_fields(layers)[-1].stride == 32
    windows = cell_windows(layers, CROP, 3 - 1, 4 - 1)  # fc6 takes 2x2
    assert windows.shape == (2, 3, 4)  # pool5 is 3x4
    np.testing.assert_array_equal(windows[0, 0], [32, 32, 64, 64])
    np.testing.assert_array_equal(windows[1, 2], boxes.window(32, 64, CROP, CROP))


def test_a_network_of_several_boxes_a_crop_is_refused():
    with pytest.raises(ValueError, match=r"one box for a crop of 64x64, got 2x2"):
        cell_windows(network(4, head="global_pool").layers, CROP, 3, 3)


def unpadded(outputs: int) -> ConvNet:
    """A network whose windows see no more than a crop: of 16 pixels, every 8."""
    layers = (
        Conv("conv1", features=6, kernel=4, stride=4),
        Relu("relu1"),
        MaxPool("pool1", window=2, stride=2, ceil_mode=False),
        FullyConnected("fc", features=outputs, kernel=2),
    )
    return ConvNet(
        layers,
        num_classes=outputs,
        in_channels=1,
        init="he",
        dtype="float32",
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize("outputs", [4, 4 * CLASSES], ids=["scr", "pcr"])
def test_a_cells_box_is_its_crops(outputs):
    model, height, width = unpadded(outputs), 24, 42
    images = np.random.default_rng(0).normal(size=(2, height, width, 1))
    images = images.astype(np.float32)
    classes = jnp.array([[2, 0], [1, 1]])
    # Padded: what is beyond must not be seen.
    padded = np.full((2, 40, 56, 1), 9, np.float32)
    padded[:, :height, :width] = images
    sizes = jnp.array([[height, width]] * 2)
    found = CellBoxes(crop=16)(model, jnp.asarray(padded), sizes, {"classes": classes})[
        :, :4, :6
    ]
    assert found.shape == (2, 4, 6, 2, 4)
    whole = boxes.window(0, 0, height, width)
    for i, j in np.ndindex(2, 4):
        top, left = 8 * i, 8 * j
        outputs_of_crop = model(images[:, top : top + 16, left : left + 16])
        for image in range(2):
            for k, label in enumerate(classes[image]):
                start = 0 if outputs == 4 else 4 * int(label)
                x, y, w, h = outputs_of_crop[image, start : start + 4]
                # In pixels: from the middle of the crop, in sides of 16.
                expected = [left + 8 + 16 * x, top + 8 + 16 * y, 16 * w, 16 * h]
                in_pixels = boxes.seen_from(whole, found[image, i, j, k])
                np.testing.assert_allclose(in_pixels, expected, atol=1e-3)


def test_ratings_are_the_posteriors_of_the_cells():
    model = unpadded(CLASSES)
    images = np.random.default_rng(1).normal(size=(2, 24, 24, 1)).astype(np.float32)
    sizes = jnp.array([[24, 24], [24, 16]])
    classes = jnp.array([[2, 0], [1, 1]])
    found = CellRatings()(model, jnp.asarray(images), sizes, {"classes": classes})
    assert found.shape == (2, 2, 2, 2)
    outside = np.zeros((2, 2, 2), bool)
    outside[1, :, 1] = True  # the second image is a cell narrower
    np.testing.assert_array_equal(found[..., 0] == -1, outside)
    alone = jax.nn.softmax(model(images[:, 8:, :16]))
    np.testing.assert_allclose(found[0, 1, 0], alone[0, jnp.array([2, 0])], rtol=1e-5)
    np.testing.assert_allclose(found[1, 1, 0], alone[1, jnp.array([1, 1])], rtol=1e-5)

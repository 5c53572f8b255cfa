"""The testing protocols on sets whose errors are counted by hand."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax import boxes
from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.evaluation.predictions import wilson
from vgg_jax.localization.localize import (
    Localizations,
    center_crop_boxes,
    dense_boxes,
    localization_error,
    mean_box_baseline,
    select_boxes,
)
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import AveragePool, FullyConnected

TARGET = (0.0, 0.0, 0.4, 0.4)
NEAR = (0.1, 0.0, 0.4, 0.4)  # three fifths of the union
FAR = (0.2, 0.0, 0.4, 0.4)  # a third


def localizations(rows: list, labels: list, weights: list) -> Localizations:
    """From rows of (class, box)."""
    return Localizations(
        boxes=np.array([[box for _, box in row] for row in rows]),
        classes=np.array([[c for c, _ in row] for row in rows]),
        targets=np.array([TARGET] * len(rows)),
        labels=np.array(labels),
        weights=np.array(weights, np.float32),
    )


def test_an_image_is_right_when_one_box_has_its_class_and_place():
    found = localizations(
        [
            [(3, TARGET), (1, FAR)],  # right by its first box
            [(1, NEAR), (3, NEAR)],  # right by its second
            [(3, FAR), (1, TARGET)],  # the class and the place, not in one box
            [(1, TARGET), (2, TARGET)],  # the place alone
            [(3, FAR), (3, FAR)],  # the class alone
            [(3, FAR), (3, FAR)],  # not read
        ],
        labels=[3] * 6,
        weights=[1, 1, 1, 1, 1, 0],
    )
    assert localization_error(found) == wilson(3, 5)
    assert localization_error(select_boxes(found, slice(1))) == wilson(4, 5)


def test_a_half_is_not_enough():
    half = (0.0, 0.0, 0.4, 0.2)  # exactly half of the target
    rows = [[(0, half)], [(0, (0.0, 0.0, 0.4, 0.201))]]
    assert localization_error(localizations(rows, [0, 0], [1, 1])) == wilson(1, 2)


def test_the_baseline_is_the_mean_of_the_true_boxes():
    found = localizations([[(0, FAR), (1, FAR)]] * 3, [0, 1, 0], [1, 1, 0])
    targets = np.array([[0.0, 0, 0.2, 0.2], [0.2, 0.4, 0.4, 0.2], [9, 9, 9, 9]])
    same = mean_box_baseline(dataclasses.replace(found, targets=targets))
    np.testing.assert_allclose(same.boxes[1, 1], [0.1, 0.2, 0.3, 0.2])
    np.testing.assert_array_equal(same.classes, found.classes)


class Spots:
    """Black pictures with a white square of 16 pixels on a grid; and a torn file."""

    class_names = ("upper", "lower")
    torn = 5

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict:
        shape = ((32, 48), (64, 32))[index % 2]
        top, left = 16 * (index % 2), 16 * (index % 3 % 2)
        image = np.zeros(shape, np.uint8)
        image[top : top + 16, left : left + 16] = 255
        whole = boxes.window(0, 0, *shape)
        box = boxes.relative_to(whole, boxes.window(top, left, 16, 16))
        png = cv2.imencode(".png", image)[1].tobytes()
        return {
            "image": png[:40] if index == self.torn else png,
            "label": index % 2,
            "name": f"spot {index}",
            "box": tuple(box),
        }


class Oracle(ConvNet):
    """Finds the white square of what it sees; a cell for each 16 pixels, crops of 32.

    Class 1's box is `off` to the right.
    """

    def __init__(self, off: float = 0.0, *, rates: bool = False):
        super().__init__(
            (
                AveragePool("pool", window=16, stride=16, ceil_mode=False),
                FullyConnected("fc", features=8, kernel=2),
            ),
            num_classes=3 if rates else 8,
            in_channels=1,
            init="he",
            dtype="float32",
            rngs=nnx.Rngs(0),
        )
        self.off, self.rates = off, rates

    def _see(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 1] -> [N, h, w, outputs]: cells of 2x2 blocks of 16 pixels."""
        n, height, width = len(images), *(side // 16 * 16 for side in images.shape[1:3])
        images = images[:, :height, :width]
        blocks = images.reshape(n, height // 16, 16, width // 16, 16).mean((2, 4))
        corners = [
            blocks[:, i : i + blocks.shape[1] - 1, j : j + blocks.shape[2] - 1]
            for i in (0, 1)
            for j in (0, 1)
        ]
        four = jnp.stack(corners, -1)  # how white each quarter of a cell's crop is
        total = four.sum(-1)
        if self.rates:
            likely = 10 * total - 5
            return jnp.stack([likely, likely, jnp.zeros_like(likely)], -1)
        share = four / jnp.maximum(total, 1e-6)[..., None]
        x = share @ jnp.array([-0.25, 0.25, -0.25, 0.25])
        y = share @ jnp.array([-0.25, -0.25, 0.25, 0.25])
        half = jnp.full_like(x, 0.5)
        return jnp.stack([x, y, half, half, x + self.off, y, half, half], -1)

    def __call__(self, images, **_):
        return self._see(images).mean((1, 2))

    def score_map(self, images, **_):
        return self._see(images)


CONFIG = Config(
    model=VGGConfig(name="vgg11"),
    data=DataConfig(
        dataset="folder",
        crop=32,
        scale_min=32,
        scale_max=32,
        mean=(0.0,),
        std=(255.0,),
        on_corrupt_image="skip",
        num_threads=2,
    ),
    evaluation=EvaluationConfig(center_scale=32, batch_size=8),
)


def test_center_crop_takes_the_box_of_the_true_class():
    found = center_crop_boxes(Oracle(off=0.25), Spots(), CONFIG)
    assert found.weights.tolist() == [1, 1, 1, 1, 1, 0, 1]
    np.testing.assert_array_equal(found.classes[:, 0], found.labels)
    # Wide pictures are of class 0. Their crop begins at column 8 and shows half of a
    # square in column 0 or all of one in column 16: boxes relative to the crop.
    np.testing.assert_allclose(found.targets[0], [-0.5, -0.25, 0.5, 0.5])
    np.testing.assert_allclose(found.boxes[0, 0, 2:], 0.5)
    # Tall ones are of class 1, whose box is off; their crop begins at row 16.
    np.testing.assert_allclose(found.boxes[1, 0], found.targets[1] + [0.25, 0, 0, 0])


@pytest.mark.parametrize("networks", [1, 2])
def test_dense_boxes_are_right_wherever_the_square_is(networks):
    source = Spots()
    found = dense_boxes(
        [Oracle(off=0.5)] * networks,
        Oracle(rates=True),
        source,
        CONFIG,
        np.tile([0, 1], (len(source), 1)),
        scales=(32,),
        merge_below=0.5,
    )
    there = found.weights > 0
    assert there.sum() == 6
    np.testing.assert_allclose(found.boxes[there, 0], found.targets[there], atol=1e-6)
    # Class 1's are half a crop, 16 pixels, to the right of where they should be.
    moved = found.boxes[there, 1] - found.targets[there]
    widths = np.where(found.labels == 0, 48, 32)[there]
    np.testing.assert_allclose(moved[:, 0], 16 / widths, atol=1e-6)
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-6)
    assert localization_error(found) == wilson(int(found.labels[there].sum()), 6)


class Short(Oracle):
    """Its map lacks rows."""

    def _see(self, images: jax.Array) -> jax.Array:
        return super()._see(images)[:, :1]


def test_networks_of_different_maps_are_refused():
    with pytest.raises(ValueError, match=r"cells, got .* of boxes and \[1, \d+\] of"):
        dense_boxes(
            [Oracle()],
            Short(rates=True),
            Spots(),
            CONFIG,
            np.zeros((7, 1), int),
            scales=(64,),
            merge_below=0.5,
        )

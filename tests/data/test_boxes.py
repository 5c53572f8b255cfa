"""Boxes follow what the pipeline does to their images."""

import dataclasses
import itertools

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax import boxes
from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.base import split_validation
from vgg_jax.data.pipeline import eval_batches, train_batches, whole_image_batches
from vgg_jax.preprocessing import translate

CONFIG = DataConfig(
    dataset="folder",
    crop=16,
    scale_min=20,
    scale_max=20,
    mean=(0.0,),
    std=(1.0,),
    num_threads=2,
)


class Rectangles:
    """Black pictures with a white rectangle each, and its box."""

    class_names = ("rectangle",)

    def __init__(self, *, shrunk: int = 1):
        self.shrunk = shrunk  # how many pixels become one at short side 20

    def __len__(self) -> int:
        return 12

    def rectangle(self, index: int) -> tuple[tuple[int, int], tuple[slice, slice]]:
        """The picture's shape, and where it is white, at short side 20."""
        shape = ((20, 30), (36, 20), (20, 20))[index % 3]
        top, left = 2 + index, 3 + index // 2
        return shape, (slice(top, top + 4 + index % 2), slice(left, left + 8))

    def __getitem__(self, index: int) -> dict:
        shape, (rows, columns) = self.rectangle(index)
        image = np.zeros(shape, np.uint8)
        image[rows, columns] = 255
        image = image.repeat(self.shrunk, 0).repeat(self.shrunk, 1)
        sides = (rows.stop - rows.start, columns.stop - columns.start)
        box = boxes.window(rows.start, columns.start, *sides)
        box = boxes.relative_to(boxes.window(0, 0, *shape), box)
        png = cv2.imencode(".png", image)[1].tobytes()
        name = f"rectangle {index}"
        return {"image": png, "label": 0, "name": name, "box": tuple(box)}


def white(box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The picture that a box relative to it describes: what it covers of each pixel."""
    x, y, width, height = boxes.seen_from(boxes.window(0, 0, *shape), box)

    def covered(center: float, side: float, count: int) -> np.ndarray:
        ends = np.clip(np.arange(count + 1), center - side / 2, center + side / 2)
        return np.diff(ends)

    return 255 * np.outer(covered(y, height, shape[0]), covered(x, width, shape[1]))


def assert_white(images: np.ndarray, boxes: np.ndarray) -> None:
    """The boxes hold what is white in the images."""
    assert boxes.dtype == np.float32 and len(boxes) == len(images)
    for image, box in zip(images[..., 0], boxes, strict=True):
        np.testing.assert_allclose(image, white(box, image.shape), atol=1)


@pytest.mark.parametrize("shrunk", [1, 2, 3])
def test_random_crops_and_flips_of_rescaled_images(shrunk):
    source = Rectangles(shrunk=shrunk)
    options = {"channels": 1, "batch_size": 24, "seed": 3, "start_step": 0}
    batches = train_batches(source, CONFIG, with_boxes=True, **options)
    seen = [next(batches) for _ in range(4)]
    for batch in seen:
        assert_white(batch["image"], batch["box"])
    # Some boxes are cut by the crop's border, and stay whole.
    ends = np.concatenate([abs(b["box"][:, :2]) + b["box"][:, 2:] / 2 for b in seen])
    assert ends.max() > 0.6
    plain = train_batches(source, CONFIG, **options)
    assert next(plain).keys() == {"image", "label", "weight"}


def test_padded_crops():
    config = dataclasses.replace(CONFIG, pad=CONFIG.crop // 4)
    options = {"channels": 1, "batch_size": 24, "seed": 3, "start_step": 0}
    batches = train_batches(Rectangles(), config, with_boxes=True, **options)
    for batch in itertools.islice(batches, 4):
        offsets = jnp.asarray(batch["offset"])
        images = translate(jnp.asarray(batch["image"]), offsets)
        is_image = translate(jnp.ones_like(images, bool), offsets)[..., 0]
        for image, box, inside in zip(images, batch["box"], is_image, strict=True):
            expected = np.where(inside, white(box, inside.shape), 0)
            np.testing.assert_allclose(image[..., 0], expected, atol=1)


def test_an_enlarged_image():
    """Bilinear rescaling leaves no clean border; the middle of a box stays white."""
    source = Rectangles()
    config = DataConfig(
        **{**vars(CONFIG), "crop": 50, "scale_min": 60, "scale_max": 60}
    )
    [batch] = itertools.islice(
        train_batches(
            source,
            config,
            channels=1,
            batch_size=48,
            seed=0,
            start_step=0,
            with_boxes=True,
        ),
        1,
    )
    for image, box in zip(batch["image"][..., 0], batch["box"], strict=True):
        difference = image.astype(int) - white(box, image.shape)
        grown = cv2.dilate(image, np.ones((3, 3))) - cv2.erode(image, np.ones((3, 3)))
        assert (abs(difference) <= grown).all()  # only at the border, by a pixel or so
        assert abs(difference).mean() < 8


@pytest.mark.parametrize(
    ("layout", "views"), [(transforms.center, 1), (transforms.corners_and_center, 5)]
)
def test_crops_of_a_layout(layout, views):
    [batch] = eval_batches(
        Rectangles(shrunk=2),
        CONFIG,
        channels=1,
        scale=20,
        crop=16,
        layout=layout,
        batch_size=12,
        with_boxes=True,
    )
    assert batch["image"].shape == (12 * views, 16, 16, 1)
    assert_white(batch["image"], batch["box"])


def test_whole_images():
    batches = list(
        whole_image_batches(
            Rectangles(shrunk=2),
            CONFIG,
            channels=1,
            scale=20,
            bucket=lambda height, width: (height, width + width % 20),
            rows=lambda shape: 3,
            with_boxes=True,
        )
    )
    assert {b["image"].shape[1:3] for b in batches} >= {(20, 40), (36, 20)}
    for batch in batches:
        for i in np.flatnonzero(batch["index"] >= 0):
            height, width = batch["size"][i]
            assert_white(
                batch["image"][i : i + 1, :height, :width], batch["box"][i : i + 1]
            )


def test_a_part_of_a_source_keeps_its_boxes():
    part, _ = split_validation(Rectangles(), 0.25)
    assert "box" in part[0]


def test_a_source_without_boxes_is_refused(fashion_mnist):
    from vgg_jax.data.sources import open_source

    with pytest.raises(ValueError, match=r"dataset with boxes.*fashion_mnist train"):
        next(
            train_batches(
                open_source(fashion_mnist, "train"),
                fashion_mnist,
                channels=1,
                batch_size=2,
                seed=0,
                start_step=0,
                with_boxes=True,
            )
        )

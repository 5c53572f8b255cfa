"""Items on canvases: what is drawn is what the box says."""

import dataclasses

import cv2
import numpy as np

from vgg_jax import boxes
from vgg_jax.data import canvases, transforms
from vgg_jax.data.sources import open_source


class Blocks:
    """28x28 pictures with a white block each."""

    class_names = ("block",)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        image = np.zeros((28, 28), np.uint8)
        image[3 : 14 + index % 9, 5:21] = 255
        png = cv2.imencode(".png", image)[1].tobytes()
        return {"image": png, "label": 0, "name": f"block {index}"}


def test_the_box_is_where_the_item_is(monkeypatch):
    monkeypatch.setattr(canvases, "CLUTTER", 0)
    source = canvases.Canvases(Blocks(), seed=0)
    for i in range(len(source)):
        example = source[i]
        image = transforms.decode(example["image"], 1)[..., 0]
        rows, columns = (np.flatnonzero((image == 255).any(axis)) for axis in (1, 0))
        found = boxes.window(rows[0], columns[0], len(rows), len(columns))
        whole = boxes.window(0, 0, *image.shape)
        box = boxes.seen_from(whole, np.array(example["box"]))
        np.testing.assert_allclose(box, found)
        long = max(found[2:]) / min(image.shape)
        assert 0.23 <= long <= 0.52


def test_sizes_shapes_and_places_vary():
    source = canvases.Canvases(Blocks(), seed=0)
    images = [transforms.decode(source[i]["image"], 1) for i in range(20)]
    assert len({image.shape for image in images}) > 15
    ratios = {round(i.shape[1] / i.shape[0], 1) for i in images}
    assert ratios == {0.7, 0.8, 1.0, 1.3, 1.5}
    assert np.std([source[i]["box"] for i in range(20)], axis=0).min() > 0.05


def test_a_picture_is_a_function_of_its_number_and_the_seed():
    one, two = (canvases.Canvases(Blocks(), seed=seed) for seed in (0, 1))
    assert one[4] == canvases.Canvases(Blocks(), seed=0)[4]
    assert one[4] != two[4] and one[4] != one[5]


def test_splits_of_the_data_set(fashion_mnist):
    config = dataclasses.replace(fashion_mnist, dataset="fashion_mnist_boxes")
    train, test = (open_source(config, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (57_000, 10_000)
    assert test.class_names[9] == "Ankle boot"
    example, item = test[0], open_source(fashion_mnist, "test")[0]
    assert example["label"] == item["label"]
    assert example["name"] == "fashion_mnist test 0 on a canvas"

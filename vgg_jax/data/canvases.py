"""This localization set has items of Fashion-MNIST on larger canvases, with boxes.

Every picture is made when it is asked for, from its number alone: the canvas's size and
shape, the background, where the item lies and how large it is. As in cluttered MNIST
(arXiv:1406.6247) parts of other items lie around it, so that brightness alone does not
tell where it is.
"""

import cv2
import numpy as np

from vgg_jax import boxes
from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.base import Example, Source
from vgg_jax.data.mirror import local_prepared
from vgg_jax.data.prepare.idx_files import FASHION_MNIST
from vgg_jax.data.records import open_prepared

SHORT_SIDES = (64, 160)  # of a canvas, in pixels
# Long over short side, as cameras have them: few, so that few programs are compiled.
ASPECTS = (1.0, 4 / 3, 3 / 2)
SIZES = (0.25, 0.5)  # an item's longer side, in short sides of its canvas
CLUTTER = 3  # parts of other items on a canvas
CLUTTER_SIDE = 10  # of such a part, in pixels of its item
FAINT = 16  # an item ends where its pixels are no brighter than this


class Canvases:
    """A source of the items of another, each alone on a canvas that `seed` chooses."""

    def __init__(self, items: Source, seed: int):
        self._items = items
        self._seed = seed

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return self._items.class_names

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        # The legacy generator, because numpy promises that its stream never changes.
        random = np.random.RandomState((self._seed, index))
        item = self._items[index]
        canvas = _background(random)
        short = min(canvas.shape[:2])
        pixels = _gray(item)
        height, width = pixels.shape
        longest = max(_tight(pixels).shape)
        scale = random.uniform(*SIZES) * short / longest
        for other in random.randint(len(self), size=CLUTTER):
            top, left = random.randint((height - CLUTTER_SIDE, width - CLUTTER_SIDE))
            part = _gray(self._items[int(other)])[top:, left:]
            part = part[:CLUTTER_SIDE, :CLUTTER_SIDE]
            _paste(canvas, part, scale, random.uniform(size=2))
        # The mean of two draws: photographers put things near the middle.
        place = random.uniform(size=(2, 2)).mean(axis=0)
        box = _paste(canvas, _tight(pixels), scale, place)
        whole = boxes.window(0, 0, *canvas.shape)
        fast = (cv2.IMWRITE_PNG_COMPRESSION, 0)
        return {
            "image": cv2.imencode(".png", canvas, fast)[1].tobytes(),
            "label": item["label"],
            "name": f"{item['name']} on a canvas",
            "box": tuple(boxes.relative_to(whole, box).tolist()),
        }


def open_fashion_mnist_boxes(config: DataConfig, split: str) -> Canvases:
    """Opens Fashion-MNIST on canvases: gray, 64 to 240 pixels a side.

    Raises:
        FileNotFoundError: Fashion-MNIST is not prepared, and no way to get it.
    """
    seed = {"train": 0, "test": 1}[split]
    data_dir = local_prepared(config, FASHION_MNIST)
    return Canvases(open_prepared(FASHION_MNIST, data_dir, split), seed)


def _background(random: np.random.RandomState) -> np.ndarray:
    """Makes clouds with noise, of random size and shape: uint8 [height, width]."""
    short = random.randint(SHORT_SIDES[0], SHORT_SIDES[1] + 1)
    long = round(short * ASPECTS[random.randint(len(ASPECTS))])
    height, width = (short, long) if random.randint(2) else (long, short)
    clouds = random.randint(random.randint(8, 128), size=(4, 4)).astype(np.uint8)
    noise = np.frombuffer(random.bytes(height * width), np.uint8) // 16
    return cv2.resize(clouds, (width, height)) + noise.reshape(height, width)


def _gray(item: Example) -> np.ndarray:
    """Decodes an item to its gray pixels: uint8 [height, width]."""
    return transforms.decode(item["image"], 1, item["name"])[..., 0]


def _tight(pixels: np.ndarray) -> np.ndarray:
    """Cuts out the part of an item that is not empty."""
    rows, columns = (np.flatnonzero((pixels > FAINT).any(axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paste(
    canvas: np.ndarray, pixels: np.ndarray, scale: float, place: np.ndarray
) -> np.ndarray:
    """Lays pixels on a canvas, brighter ones on top; gives their box in pixels.

    `place` is a fraction of the way that it can move, down and right.
    """
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    resized = cv2.resize(pixels, (width, height))
    rows, columns = canvas.shape[0] - height, canvas.shape[1] - width
    top, left = int(place[0] * (rows + 1)), int(place[1] * (columns + 1))
    region = canvas[top : top + height, left : left + width]
    np.maximum(region, resized, out=region)
    return boxes.window(top, left, height, width)

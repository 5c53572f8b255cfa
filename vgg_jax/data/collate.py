"""This module makes batches from example numbers; Grain's threads run it.

One call makes a whole batch, since Grain's own cost for an element is several times
that of decoding a small image.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vgg_jax import boxes
from vgg_jax.data import transforms
from vgg_jax.data.base import CorruptImage, Source

# A batch as `pipeline` gives it, with the further key "corrupt": a list of messages.
RawBatch = dict[str, Any]


@dataclasses.dataclass
class Row:
    """One example of a batch."""

    index: int
    label: int
    image: np.ndarray | None  # None where it is corrupt
    problem: str = ""  # why it could not be decoded
    # The object's box, [4] relative to the image, or [crops, 4] relative to each crop;
    # None where the source has no boxes.
    box: np.ndarray | None = None


@dataclasses.dataclass
class Decoder:
    """Reads and decodes examples by number."""

    source: Source
    channels: int
    max_pixels: int  # see `transforms.decode`

    def __call__(self, index: int, wanted: int | transforms.Crop | None) -> Row:
        """Decodes example `index`.

        Args:
            index: its number.
            wanted: a crop; or the short side that the image will be rescaled to, None
                for that of the file.

        Raises:
            ValueError: its label is not that of a class.
        """
        try:
            example = self.source[index]
        except CorruptImage as error:
            return Row(index, 0, None, str(error))  # its label is in what is damaged
        classes = len(self.source.class_names)
        if not 0 <= example["label"] < classes:
            raise ValueError(
                f"expected a label from 0 to {classes - 1}, as there are {classes} "
                f"classes, got {example['label']} in {example['name']}; correct it, or "
                "prepare the data again"
            )
        picture = (example["image"], self.channels, example["name"])
        box = np.array(example["box"]) if "box" in example else None
        try:
            if isinstance(wanted, transforms.Crop):
                image, shape = transforms.decode_crop(
                    *picture, wanted, max_pixels=self.max_pixels
                )
                if box is not None:
                    window = transforms.rescaled_crop_window(shape, wanted)
                    box = boxes.relative_to(window, box)
            else:
                image = transforms.decode(*picture, wanted, max_pixels=self.max_pixels)
        except CorruptImage as error:
            return Row(index, example["label"], None, str(error))
        return Row(index, example["label"], image, box=box)


class CropDraws(NamedTuple):
    """What is drawn for the crops of some examples.

    Args:
        short_side: int64 [N], what the images are rescaled to.
        place: [N, 2], the crops' places down and right, see `transforms.place_crop`.
        is_mirrored: bool [N].
    """

    short_side: np.ndarray
    place: np.ndarray
    is_mirrored: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainDraws:
    """Draws all that is random in a training batch.

    Each number is a function of the seed and an example's position in the stream.

    Args:
        scale_min, scale_max: the ends of the short sides that are drawn.
        flip: whether half of the crops are mirrored.
        shift_axes: [channels, channels], see `color_shifts`; None for no shift.
        seed: the seed of the run.
        pad: pixels, see `window_offsets`; 0 for no offset.
    """

    scale_min: int
    scale_max: int
    flip: bool
    shift_axes: np.ndarray | None
    seed: int
    pad: int = 0

    def crops(self, position: int, count: int) -> CropDraws:
        """Draws for the crops of the stream positions from `position` on."""
        scale, down, right, mirror = uniforms(self.seed, position, count).T
        scales = self.scale_max - self.scale_min + 1
        return CropDraws(
            self.scale_min + (scale * scales).astype(np.int64),
            np.stack((down, right), axis=1),
            (mirror < 0.5) & self.flip,
        )

    def changes(self, position: int, count: int) -> RawBatch:
        """Draws what the device does to the crops: "offset" and "shift", if wanted."""
        changes: RawBatch = {}
        if self.pad:
            changes["offset"] = window_offsets(self.seed, position, count, self.pad)
        if self.shift_axes is not None:
            changes["shift"] = color_shifts(self.seed, position, count, self.shift_axes)
        return changes


@dataclasses.dataclass
class TrainCrops:
    """Makes batches of random crops of rescaled images, section 3.1."""

    decoder: Decoder
    draws: TrainDraws
    crop: int
    exact_shrinking: bool = False  # see `transforms.rescaled_crop`

    def __call__(self, number: int, examples: np.ndarray) -> RawBatch:
        """Makes the batch of the stream positions from `number * len(examples)` on."""
        position, count = number * len(examples), len(examples)
        crops = self.draws.crops(position, count)
        # One after the other: a crop is still in the processor's cache when it is put
        # into the batch.
        rows = (
            self._crop(*draws)
            for draws in zip(
                examples.tolist(), *(array.tolist() for array in crops), strict=True
            )
        )
        batch = stack(rows, count, (self.crop, self.crop, self.decoder.channels))
        batch |= self.draws.changes(position, count)
        if "offset" in batch:
            # A box is (x, y, width, height), an offset (down, right).
            batch["box"][:, :2] -= batch["offset"][:, ::-1] / self.crop
        return batch

    def _crop(
        self, index: int, short_side: int, place: list[float], is_mirrored: bool
    ) -> Row:
        down, right = place
        row = self.decoder(
            index,
            transforms.Crop(short_side, self.crop, down, right, self.exact_shrinking),
        )
        if row.image is not None and is_mirrored:
            row.image = transforms.flip(row.image)
            row.box = None if row.box is None else boxes.mirror(row.box)
        return row


@dataclasses.dataclass
class Crops:
    """Makes batches of crops of rescaled images.

    Example numbers past the end of the source leave rows empty.
    """

    decoder: Decoder
    scale: int
    crop: int
    layout: transforms.CropLayout

    def __call__(self, examples: np.ndarray) -> RawBatch:
        """Makes the batch of some examples; an example's crops follow one another."""
        rows = [
            self._cut(self.decoder(index, self.scale))
            for index in examples.tolist()
            if index < len(self.decoder.source)
        ]
        shape = (self.crop, self.crop, self.decoder.channels)
        batch = stack(rows, len(examples), (len(self.layout(0, 0)), *shape))
        batch["image"] = batch["image"].reshape(-1, *shape)
        batch["box"] = batch["box"].reshape(-1, 4)
        return batch

    def _cut(self, row: Row) -> Row:
        if row.image is not None:
            image = transforms.rescale(row.image, self.scale)
            row.image = transforms.cut(image, self.crop, self.layout)
            if row.box is not None:
                place = (image.shape[:2], self.crop, self.layout)
                row.box = boxes.relative_to(transforms.crop_windows(*place), row.box)
        return row


@dataclasses.dataclass
class WholeImages:
    """Makes rows of whole rescaled images, of any shape."""

    decoder: Decoder
    scale: int

    def __call__(self, examples: np.ndarray) -> list[Row]:
        """Gives the rows of some examples, by number, not yet batched."""
        rows = [self.decoder(index, self.scale) for index in examples.tolist()]
        for row in rows:
            if row.image is not None:
                row.image = transforms.rescale(row.image, self.scale)
        return rows


@dataclasses.dataclass
class Moments:
    """Sums the first two moments of the pixels of rescaled images."""

    decoder: Decoder
    scale: int

    def __call__(self, examples: np.ndarray) -> RawBatch:
        """Sums over examples: {"count": images, "first": [C], "second": [C, C]}.

        An image adds the mean of its pixels x to "first", and the mean of the products
        x x^T to "second".
        """
        rows = [self.decoder(index, self.scale) for index in examples.tolist()]
        channels = self.decoder.channels
        first, second = np.zeros(channels), np.zeros((channels, channels))
        images = [row.image for row in rows if row.image is not None]
        for image in images:
            pixels = transforms.rescale(image, self.scale).reshape(-1, channels)
            pixels = pixels.astype(np.float64)
            first += pixels.mean(0)
            second += pixels.T @ pixels / len(pixels)
        problems = [row.problem for row in rows if row.image is None]
        return {
            "count": len(images),
            "first": first,
            "second": second,
            "corrupt": problems,
        }


def stack(rows: Iterable[Row], size: int, shape: tuple[int, ...]) -> RawBatch:
    """Makes a batch of `size` images of `shape`.

    What `rows` do not fill has weight 0 and index -1.
    """
    batch: RawBatch = {
        # Cleared where no image is, for clearing all takes 2% of what decoding takes.
        "image": np.empty((size, *shape), np.uint8),
        "label": np.zeros(size, np.int32),
        "weight": np.zeros(size, np.float32),
        "index": np.full(size, -1, np.int32),
        "box": np.zeros((size, *shape[:-3], 4), np.float32),
        "corrupt": [],
    }
    for i, row in enumerate(rows):
        batch["label"][i] = row.label
        batch["index"][i] = row.index
        if row.image is None:
            batch["corrupt"].append(row.problem)
        else:
            if row.image.shape != shape:  # it is smaller: in the upper left corner
                batch["image"][i] = 0
            batch["image"][i][tuple(map(slice, row.image.shape))] = row.image
            batch["weight"][i] = 1
            if row.box is not None:
                batch["box"][i] = row.box
    batch["image"][batch["weight"] == 0] = 0
    return batch


def stack_padded(rows: Sequence[Row], size: int, shape: tuple[int, ...]) -> RawBatch:
    """Makes a batch as `stack` does, of images of `shape` or smaller.

    The height and width of each image are in "size", int32 [size, 2].
    """
    batch = stack(rows, size, shape)
    batch["size"] = np.tile(np.asarray(shape[:2], np.int32), (size, 1))
    for i, row in enumerate(rows):
        if row.image is not None:
            batch["size"][i] = row.image.shape[:2]
    return batch


def color_shifts(seed: int, position: int, count: int, axes: np.ndarray) -> np.ndarray:
    """Draws what to add to each image's pixels: float32 [count, C].

    It is the sum of the rows of `axes`, each times a number from N(0, 1).
    """
    # A second seed, so that crops stay as they are where no shift is asked for.
    radius, angle = np.split(uniforms((seed, 1), position, count), 2, axis=1)
    radius = np.sqrt(-2 * np.log1p(-radius))  # Box and Muller's normal numbers
    angle = 2 * np.pi * angle
    normal = np.hstack((radius * np.cos(angle), radius * np.sin(angle)))
    return (normal[:, : len(axes)] @ axes).astype(np.float32)


def window_offsets(seed: int, position: int, count: int, pad: int) -> np.ndarray:
    """Draws how far windows on padded images move down and right: int32 [count, 2].

    The numbers from -pad to pad are equally probable.
    """
    # A third seed, so that crops and shifts stay as they are without padding.
    down_and_right = uniforms((seed, 2), position, count)[:, :2]
    return (down_and_right * (2 * pad + 1)).astype(np.int32) - pad


def uniforms(seed: int | tuple[int, ...], position: int, count: int) -> np.ndarray:
    """Draws four numbers in [0, 1) for each position from `position` on: [count, 4].

    Philox makes four words at each tick of its counter, so the counter is the position.
    """
    words = np.random.Philox(seed, counter=position).random_raw(4 * count)
    return (words >> np.uint64(11)).reshape(count, 4) * 2.0**-53

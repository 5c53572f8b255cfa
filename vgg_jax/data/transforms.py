"""Operations on one image, a uint8 array [H, W, channels] with pixels 0-255."""

import struct

import cv2
import numpy as np

from vgg_jax import boxes
from vgg_jax.data import crops

Image = np.ndarray

# Of an image's sides: rescaled to a short side of 512, more would not fit into memory.
MAX_ASPECT = 64
# OpenCV's flags for decoding a JPEG at a part of its size: its blocks of 8x8
# coefficients give blocks of 1, 2 or 4. (For a PNG they would skip pixels.)
REDUCTIONS = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


class CorruptImage(ValueError):
    """An image that cannot be decoded; the message names it."""


def decode(
    data: bytes, channels: int, name: str = "the image", short_side: int | None = None
) -> Image:
    """Encoded JPEG or PNG -> uint8 [H, W, channels], RGB for 3 and gray for 1.

    The EXIF orientation is applied; gray, palette, CMYK and 16-bit files are converted,
    and transparency is dropped. With `short_side`, to which the image will be rescaled,
    a JPEG is decoded at a half, a quarter or an eighth of its size where that leaves
    twice `short_side` or more.

    Raises:
        CorruptImage: truncated, not an image, or of absurd size.
        ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"expected 1 (gray) or 3 (RGB) channels, found {channels}")
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = None
    if data:
        if short_side is not None:
            mode |= _reduction(jpeg_short_side(data), short_side)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
        except cv2.error as error:  # more than 2**30 pixels
            raise CorruptImage(f"cannot decode {name}: {error.err}") from error
    if image is None:
        raise CorruptImage(
            f"cannot decode {name}: expected a whole JPEG or PNG, found {len(data)} "
            "bytes that are truncated or something else"
        )
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise CorruptImage(
            f"cannot use {name}: expected one side at most {MAX_ASPECT} times the "
            f"other, found {height}x{width}"
        )
    return image.reshape(height, width, channels)


def jpeg_short_side(data: bytes) -> int:
    """The smaller side of a JPEG as its header says, or 0 for anything else."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker = data[at + 1]
        # C4, C8 and CC are tables; the other Cx head the frame, and say its size.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return min(struct.unpack_from(">HH", data, at + 5))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def rescale(image: Image, short_side: int) -> Image:
    """Isotropic rescaling, section 3.1: [H, W, C] -> min(h, w) == short_side.

    Shrinking averages the pixels that fall on one (cv2.INTER_AREA), which is free of
    aliasing; enlarging is bilinear.
    """
    return _resize(image, *rescaled_shape(image.shape[:2], short_side))


def rescaled_shape(shape: tuple[int, ...], short_side: int) -> tuple[int, int]:
    """Height and width after `rescale`, from those before."""
    height, width = shape
    short = min(shape)
    return round(height * short_side / short), round(width * short_side / short)


def rescaled_crop(
    image: Image, short_side: int, size: int, down: float, right: float
) -> Image:
    """`crops.at` of what `rescale` gives, without rescaling what the crop leaves out.

    An image that shrinks is cropped first, at whole pixels: the crop lies within half
    a pixel of the other order's, and its scale is within half a pixel of its side.

    Raises:
        ValueError: `short_side` is smaller than the crop.
    """
    shape, side = _before_crop(image.shape[:2], short_side, size)
    [corner] = crops.at(down, right)(*_room(shape, side))
    return _resize(_crop(_resize(image, *shape), side, *corner), size, size)


def rescaled_crop_window(
    shape: tuple[int, ...], short_side: int, size: int, down: float, right: float
) -> np.ndarray:
    """Where `rescaled_crop` cuts an image of this height and width.

    [4], the crop's box relative to the image (`vgg_jax.boxes`).
    """
    before = _before_crop(shape, short_side, size)
    return crop_windows(*before, crops.at(down, right))[0]


def center_crop(image: Image, size: int) -> Image:
    """The middle [size, size, C], rounded towards the upper left.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    return cut(image, size, crops.center)[0]


def cut(image: Image, size: int, rule: crops.Rule) -> np.ndarray:
    """The crops of a rule, one of `vgg_jax.data.crops`: [crops, size, size, C].

    Raises:
        ValueError: the image is smaller than the crop.
    """
    corners = rule(*_room(image.shape[:2], size))
    return np.stack([_crop(image, size, *corner) for corner in corners])


def crop_windows(shape: tuple[int, ...], size: int, rule: crops.Rule) -> np.ndarray:
    """Where `cut` cuts an image of this height and width: [crops, 4].

    The crops' boxes relative to the image (`vgg_jax.boxes`).
    """
    windows = [boxes.window(*c, size, size) for c in rule(*_room(shape, size))]
    return boxes.relative_to(boxes.window(0, 0, *shape), np.stack(windows))


def flip(image: Image) -> Image:
    """Mirrored left to right."""
    return image[:, ::-1]


def _reduction(jpeg_side: int, short_side: int) -> int:
    """The flag of the smallest decoding that leaves twice `short_side`."""
    for factor, flag in REDUCTIONS:
        if jpeg_side >= 2 * factor * short_side:
            return flag
    return 0


def _resize(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return image
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized.reshape(height, width, image.shape[2])


def _before_crop(
    shape: tuple[int, ...], short_side: int, size: int
) -> tuple[tuple[int, int], int]:
    """The height and width of what `rescaled_crop` crops, and the crop's side there."""
    short = min(shape)
    if short <= short_side:  # enlarged: a pixel's neighbors outside the crop matter
        return rescaled_shape(shape, short_side), size
    if short_side < size:
        raise ValueError(
            f"cannot take a {size}x{size} crop from an image of short side {short_side}"
        )
    return (shape[0], shape[1]), round(size * short / short_side)


def _room(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """How far a crop can move down and right."""
    height, width = shape
    if min(height, width) < size:
        raise ValueError(
            f"cannot take a {size}x{size} crop from an image of {height}x{width}; "
            "rescale it to a larger short side"
        )
    return height - size, width - size


def _crop(image: Image, size: int, top: int, left: int) -> Image:
    return image[top : top + size, left : left + size]

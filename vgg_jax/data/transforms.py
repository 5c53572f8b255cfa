"""This module operates on one image, uint8 [H, W, channels] with pixels 0-255."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from vgg_jax import boxes
from vgg_jax.config import MAX_PIXELS
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.headers import (
    JPEG,
    PNG,
    jpeg_header,
    jpeg_scans,
    png_pixels,
    png_size,
)
from vgg_jax.data.jpeg_window import decode_window

Image = np.ndarray

# Where crops are cut from a larger image (arXiv:1409.1556). A layout takes how many
# pixels a crop can move down and right, and gives the upper left corner (top, left) of
# each crop. The number of crops is always the same: some coincide in a small image.
CropLayout = Callable[[int, int], Sequence[tuple[int, int]]]

# Of an image's sides: rescaled to a short side of 512, more would not fit into memory.
MAX_ASPECT = 64
# Of a progressive JPEG; programs make some ten, and each is a pass over all pixels.
MAX_SCANS = 100
# Pixels of an enlarged image, of which only a crop is computed.
LARGE = 100_000
# OpenCV's flags for decoding a JPEG at a part of its size: its blocks of 8x8
# coefficients give blocks of 1, 2 or 4. (For a PNG they would skip pixels.)
REDUCTIONS = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


class Crop(NamedTuple):
    """A crop of a rescaled image, section 3.1.

    Args:
        short_side: what the image is rescaled to, in pixels.
        size: the crop's side, in pixels; at most `short_side`.
        down, right: fractions of the places where it fits, see `place_crop`.
        exact_shrinking: whether it shrinks as `rescale` does, not by `sample`.
    """

    short_side: int
    size: int
    down: float
    right: float
    exact_shrinking: bool = False


def decode(
    data: bytes,
    channels: int,
    name: str = "the image",
    short_side: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Decodes a JPEG or PNG to uint8 [H, W, channels], RGB for 3 and gray for 1.

    The EXIF orientation is applied; gray, palette, CMYK and 16-bit files are converted,
    and transparency is dropped. With `short_side`, to which the image will be rescaled,
    a JPEG is decoded at a half, a quarter or an eighth of its size where that leaves
    twice `short_side` or more.

    An image whose header promises more than `max_pixels` is not decoded, so that memory
    is bounded: by 3 bytes a pixel of a JPEG, 6 of a PNG, 9 of a progressive JPEG.

    Raises:
        CorruptImage: truncated, not an image, or of absurd size.
        ValueError: `channels` is neither 1 nor 3.
    """
    header = _header(data, channels, name, max_pixels)
    return _decode(data, header, channels, name, short_side)


def decode_crop(
    data: bytes,
    channels: int,
    name: str,
    crop: Crop,
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image, tuple[int, ...]]:
    """Decodes a crop of an image: [size, size, C], and the image's height and width.

    It is what `rescaled_crop` makes of what `decode` gives, to the bit; what lies
    outside of the crop is not decoded where `decode_window` can leave it out.

    Raises:
        CorruptImage: truncated, not an image, or of absurd size.
        ValueError: `channels` is neither 1 nor 3, or the crop's `short_side` is smaller
            than its size.
    """
    header = _header(data, channels, name, max_pixels)
    shape = (header.height, header.width)
    reduced = _reduction(min(shape), crop.short_side)
    if header.is_upright_color and channels == 3 and min(shape) and not reduced:
        window, make = _plan(shape, crop)
        pixels = decode_window(data, *window)
        if pixels is not None:
            return make(pixels), shape
    image = _decode(data, header, channels, name, crop.short_side)
    return rescaled_crop(image, crop), image.shape[:2]


class _Header(NamedTuple):
    """What a file says of its image; zeros for one that is neither JPEG nor PNG."""

    height: int
    width: int
    is_upright_color: bool  # a JPEG in color, decoded the way it lies in the file


def _header(data: bytes, channels: int, name: str, max_pixels: int) -> _Header:
    """Reads the header of an image.

    Raises:
        CorruptImage: the image would take too much memory or time.
        ValueError: there are not images of so many channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"expected 1 (gray) or 3 (RGB) channels, found {channels}")
    if not data.startswith(JPEG):
        shape = png_size(data)
        _refuse_absurd_size(shape, name, max_pixels)
        return _Header(*shape, is_upright_color=False)
    jpeg = jpeg_header(data)
    _refuse_absurd_size((jpeg.height, jpeg.width), name, max_pixels)
    if not jpeg.is_one_scan and (scans := jpeg_scans(data)) > MAX_SCANS:
        raise CorruptImage(
            f"cannot use {name}: expected a JPEG of at most {MAX_SCANS} scans, found "
            f"{scans}"
        )
    is_upright_color = jpeg.components == 3 and not jpeg.has_exif
    return _Header(jpeg.height, jpeg.width, is_upright_color)


def _decode(
    data: bytes, header: _Header, channels: int, name: str, short_side: int | None
) -> Image:
    """Decodes a whole image that has this header, as `decode` does."""
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    shape = (header.height, header.width)
    image = None
    whole: bytes | None = data
    if data.startswith(PNG):
        whole = png_pixels(data)
    elif short_side is not None:
        mode |= _reduction(min(shape), short_side)
    if whole and min(shape):
        try:
            image = cv2.imdecode(np.frombuffer(whole, np.uint8), mode)
        except cv2.error as error:  # such as too little memory
            raise CorruptImage(f"cannot decode {name}: {error.err}") from error
    if image is None:
        raise CorruptImage(
            f"cannot decode {name}: expected a whole JPEG or PNG, found {len(data)} "
            "bytes that are truncated or something else"
        )
    return image.reshape(*image.shape[:2], channels)


def _refuse_absurd_size(shape: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises CorruptImage for an image of too many pixels or too unlike sides."""
    height, width = shape
    if height * width > max_pixels:
        raise CorruptImage(
            f"cannot decode {name}: expected at most {max_pixels:,} pixels, which "
            f"data.max_pixels sets, found {height}x{width}"
        )
    if max(shape) > MAX_ASPECT * min(shape) > 0:
        raise CorruptImage(
            f"cannot use {name}: expected one side at most {MAX_ASPECT} times the "
            f"other, found {height}x{width}"
        )


def rescale(image: Image, short_side: int) -> Image:
    """Rescales isotropically (section 3.1): [H, W, C] -> min(h, w) == short_side.

    Shrinking averages the pixels that fall on one (cv2.INTER_AREA), which is free of
    aliasing; enlarging is bilinear.
    """
    return _resize(image, *rescaled_shape(image.shape[:2], short_side))


def rescaled_shape(shape: tuple[int, ...], short_side: int) -> tuple[int, int]:
    """Returns the height and width that `rescale` makes of an image of this shape."""
    height, width = shape
    short = min(shape)
    return round(height * short_side / short), round(width * short_side / short)


def rescaled_crop(image: Image, crop: Crop) -> Image:
    """Cuts a crop of what `rescale` gives, without rescaling what it leaves out.

    An image that shrinks is cropped first, at whole pixels: the crop lies within half
    a pixel of the other order's, and its scale is within half a pixel of its side. Of
    one that grows to `LARGE` pixels or more only the crop is interpolated, in other
    arithmetic than `rescale` has: gray levels differ by at most 1.

    Raises:
        ValueError: the crop's `short_side` is smaller than its size.
    """
    (top, left, height, width), make = _plan(image.shape[:2], crop)
    return make(image[top : top + height, left : left + width])


def _plan(
    shape: tuple[int, ...], crop: Crop
) -> tuple[tuple[int, int, int, int], Callable[[Image], Image]]:
    """Plans a crop of an image of this shape.

    Returns:
        The window that the crop needs, as top, left, height and width; and a function
        that makes the crop of the window's pixels.
    """
    before, corner, side = _before_rescaling(shape, crop)
    if before == shape and crop.exact_shrinking:
        return (*corner, side, side), lambda window: _resize(window, *(crop.size,) * 2)
    if before == shape:
        return (*corner, side, side), lambda window: sample(window, crop.size)
    if math.prod(before) < LARGE:
        whole = (0, 0, shape[0], shape[1])
        return whole, lambda image: _crop(_resize(image, *before), side, *corner)
    (top, down, height), (left, right, width) = (
        _interpolated(*axis, side) for axis in zip(shape, before, corner, strict=True)
    )
    matrix = np.array([[right[0], 0, right[1]], [0, down[0], down[1]]])

    def interpolate(window: Image) -> Image:
        method = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        border = cv2.BORDER_REPLICATE
        pixels = cv2.warpAffine(
            window, matrix, (side, side), flags=method, borderMode=border
        )
        return pixels.reshape(side, side, window.shape[2])

    return (top, left, height, width), interpolate


def _interpolated(
    length: int, enlarged: int, start: int, count: int
) -> tuple[int, tuple[float, float], int]:
    """Returns which pixels along an axis the pixels of an enlarged image lie between.

    Args:
        length, enlarged: the axis's pixels before and after.
        start, count: which pixels of the enlarged one.

    Returns:
        The first pixel; the step from one enlarged pixel to the next, and the place of
        the first, from the middle of that pixel; and how many pixels there are.
    """
    step = length / enlarged
    place = (start + 0.5) * step - 0.5
    # The half of a pixel at either end of the axis has one neighbor.
    first = max(0, math.floor(place))
    last = min(length - 1, math.floor(place + (count - 1) * step) + 1)
    return first, (step, place - first), last - first + 1


def sample(image: Image, size: int) -> Image:
    """Shrinks a square by sampling: [side, side, C] -> [size, size, C].

    A pixel is the mean of n x n evenly spaced points of the bilinear surface, where n
    is side / size, rounded. Where that is a whole number it is what `rescale` gives;
    elsewhere it takes a fifth to a half of the time.
    """
    points = max(1, round(len(image) / size)) * size
    return _resize(_resize(image, points, points, cv2.INTER_LINEAR), size, size)


def rescaled_crop_window(shape: tuple[int, ...], crop: Crop) -> np.ndarray:
    """Returns the box of the crop that `rescaled_crop` takes: [4].

    It is relative to the image, which has this shape (`vgg_jax.boxes`).
    """
    shape, corner, side = _before_rescaling(shape, crop)
    return boxes.relative_to(
        boxes.window(0, 0, *shape), boxes.window(*corner, side, side)
    )


def center_crop(image: Image, size: int) -> Image:
    """Cuts out the middle of an image: [size, size, C], rounded to the upper left.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    return cut(image, size, center)[0]


def place_crop(down: float, right: float) -> CropLayout:
    """Makes a layout of one crop at fractions in [0, 1) of the places where it fits.

    With two uniform numbers it is the random crop of section 3.1.
    """
    return lambda rows, columns: [(int(down * (rows + 1)), int(right * (columns + 1)))]


def center(down: int, right: int) -> list[tuple[int, int]]:
    """Gives the layout of one crop in the middle, rounded towards the upper left."""
    return [(down // 2, right // 2)]


def corners_and_center(down: int, right: int) -> list[tuple[int, int]]:
    """Gives the layout of five of the ten crops of Krizhevsky et al. (2012).

    The other five are the mirror images of these.
    """
    return [(0, 0), (0, right), (down, 0), (down, right), *center(down, right)]


def grid(side: int, down: int, right: int) -> list[tuple[int, int]]:
    """Makes the layout of a regular grid of side x side crops, row by row.

    Along each axis the first crop is at 0 and the last at the end, crop i at
    `i * end // (side - 1)`: evenly spaced, rounded towards the upper left.
    """
    return [
        (i * down // (side - 1), j * right // (side - 1))
        for i in range(side)
        for j in range(side)
    ]


# 25 of the 50 crops a scale of section 3.2: the others are mirrored.
grid_5x5: CropLayout = functools.partial(grid, 5)


def cut(image: Image, size: int, layout: CropLayout) -> np.ndarray:
    """Cuts the crops of a layout: [H, W, C] -> [crops, size, size, C].

    Raises:
        ValueError: the image is smaller than the crop.
    """
    corners = layout(*_slack(image.shape[:2], size))
    return np.stack([_crop(image, size, *corner) for corner in corners])


def crop_windows(shape: tuple[int, ...], size: int, layout: CropLayout) -> np.ndarray:
    """Returns the boxes of the crops that `cut` takes: [crops, 4].

    They are relative to the image, which has this shape (`vgg_jax.boxes`).
    """
    windows = [boxes.window(*c, size, size) for c in layout(*_slack(shape, size))]
    return boxes.relative_to(boxes.window(0, 0, *shape), np.stack(windows))


def flip(image: Image) -> Image:
    """Mirrors an image left to right: [H, W, C] -> [H, W, C]."""
    # Not a view: to copy pixels in reverse takes numpy as long as to decode them.
    return cv2.flip(image, 1).reshape(image.shape)


def _reduction(jpeg_side: int, short_side: int) -> int:
    """Returns OpenCV's flag for the smallest size with twice `short_side` or more."""
    for factor, flag in REDUCTIONS:
        if jpeg_side >= 2 * factor * short_side:
            return flag
    return 0


def _resize(image: Image, height: int, width: int, method: int | None = None) -> Image:
    """Resizes by a method of OpenCV's; None takes those that `rescale` names."""
    if image.shape[:2] == (height, width):
        return image
    if method is None:
        method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized.reshape(height, width, image.shape[2])


def _before_rescaling(
    shape: tuple[int, ...], crop: Crop
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Returns the size of the image that `rescaled_crop` cuts, and the cut.

    That is its upper left corner and its side.
    """
    short = min(shape)
    if short <= crop.short_side:  # enlarged: neighbors outside of the crop matter
        before, side = rescaled_shape(shape, crop.short_side), crop.size
    elif crop.short_side < crop.size:
        raise ValueError(
            f"cannot take a {crop.size}x{crop.size} crop from an image of short side "
            f"{crop.short_side}"
        )
    else:
        before = (shape[0], shape[1])
        side = round(crop.size * short / crop.short_side)
    [corner] = place_crop(crop.down, crop.right)(*_slack(before, side))
    return before, corner, side


def _slack(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Returns how far a crop can move down and right in an image, in pixels."""
    height, width = shape
    if min(height, width) < size:
        raise ValueError(
            f"cannot take a {size}x{size} crop from an image of {height}x{width}; "
            "rescale it to a larger short side"
        )
    return height - size, width - size


def _crop(image: Image, size: int, top: int, left: int) -> Image:
    return image[top : top + size, left : left + size]

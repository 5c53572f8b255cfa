"""Operations on one image, a uint8 array [H, W, channels] with pixels 0-255."""

import cv2
import numpy as np

from vgg_jax.data import crops

Image = np.ndarray


class CorruptImage(ValueError):
    """An image that cannot be decoded; the message names it."""


def decode(data: bytes, channels: int, name: str = "the image") -> Image:
    """Encoded JPEG or PNG -> uint8 [H, W, channels], RGB for 3 and grey for 1.

    The EXIF orientation is applied; grey, palette, CMYK and 16-bit files are converted,
    and transparency is dropped.

    Raises:
        CorruptImage: truncated or not an image.
        ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"expected 1 (grey) or 3 (RGB) channels, found {channels}")
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = None
    if data:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
        except cv2.error as error:  # such as a picture of absurd size
            raise CorruptImage(f"cannot decode {name}: {error.err}") from error
    if image is None:
        raise CorruptImage(
            f"cannot decode {name}: expected a whole JPEG or PNG, found {len(data)} "
            "bytes that are truncated or something else"
        )
    return image.reshape(*image.shape[:2], channels)


def rescale(image: Image, short_side: int) -> Image:
    """Isotropic rescaling, section 3.1: [H, W, C] -> min(h, w) == short_side.

    Shrinking averages the pixels that fall on one (cv2.INTER_AREA), which is free of
    aliasing; enlarging is bilinear.
    """
    height, width, channels = image.shape
    short = min(height, width)
    if short == short_side:
        return image
    size = (round(width * short_side / short), round(height * short_side / short))
    method = cv2.INTER_AREA if short_side < short else cv2.INTER_LINEAR
    resized = cv2.resize(image, size, interpolation=method)
    return resized.reshape(size[1], size[0], channels)


def crop_at(image: Image, size: int, down: float, right: float) -> Image:
    """A crop [size, size, C] at fractions in [0, 1) of the places where it fits.

    With two uniform numbers it is the random crop of section 3.1.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    rows, columns = _room(image, size)
    return _crop(image, size, int(down * (rows + 1)), int(right * (columns + 1)))


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
    corners = rule(*_room(image, size))
    return np.stack([_crop(image, size, *corner) for corner in corners])


def flip(image: Image) -> Image:
    """Mirrored left to right."""
    return image[:, ::-1]


def _room(image: Image, size: int) -> tuple[int, int]:
    """How far a crop can move down and right."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"cannot take a {size}x{size} crop from an image of {height}x{width}; "
            "rescale it to a larger short side"
        )
    return height - size, width - size


def _crop(image: Image, size: int, top: int, left: int) -> Image:
    return image[top : top + size, left : left + size]

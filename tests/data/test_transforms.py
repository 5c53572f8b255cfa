import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from vgg_jax.data import transforms

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def encode(image: PIL.Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def assert_near(image: np.ndarray, expected: object, atol: int) -> None:
    expected = np.asarray(expected, np.int32)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(np.int32) - expected).max() <= atol


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_decode_gives_rgb_and_grey(picture, file_format):
    data = encode(PIL.Image.fromarray(picture(60, 81)), file_format, quality=95)
    reference = PIL.Image.open(io.BytesIO(data))
    assert_near(transforms.decode(data, 3), reference, atol=1)
    grey = transforms.decode(data, 1)
    assert grey.shape == (60, 81, 1)
    assert_near(grey[..., 0], reference.convert("L"), atol=2)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "I;16"])
def test_decode_converts_other_modes(picture, mode):
    image = PIL.Image.fromarray(picture(20, 30)).convert("L")
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        expected = np.asarray(image) // 257
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("L"))
    data = encode(image, "PNG")
    assert_near(transforms.decode(data, 1)[..., 0], expected, atol=1)
    assert_near(transforms.decode(data, 3), np.stack([expected] * 3, -1), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(picture, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = PIL.Image.fromarray(picture(20, 30))
    data = encode(image, "PNG", exif=exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert upright.size == ((30, 20) if orientation < 5 else (20, 30))
    assert_near(transforms.decode(data, 3), upright, atol=0)
    data = encode(image, "JPEG", exif=exif, quality=95, subsampling=0)
    assert_near(transforms.decode(data, 3), upright, atol=12)
    assert_near(transforms.decode(data, 1)[..., 0], upright.convert("L"), atol=12)


def test_decode_converts_cmyk(picture):
    image = picture(60, 80, blue=200)
    cmyk = PIL.Image.fromarray(image).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95, subsampling=0)
    assert PIL.Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_near(transforms.decode(data, 3), image, atol=6)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("lost", [20, 3000])
def test_decode_refuses_truncated_files(file_format, lost):
    data = encode(PIL.Image.fromarray(NOISE), file_format)
    assert transforms.decode(data, 3).shape == (60, 80, 3)
    with pytest.raises(transforms.CorruptImage, match=r"photos/cat.*truncated"):
        transforms.decode(data[:-lost], 3, "photos/cat")


@pytest.mark.parametrize("data", [b"", b"GIF? no, text"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(transforms.CorruptImage, match=r"cat.*JPEG or PNG"):
        transforms.decode(data, 1, "cat")


def test_decode_refuses_other_channel_counts():
    with pytest.raises(ValueError, match=r"expected 1 .* or 3 .* found 4"):
        transforms.decode(b"", 4)


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [
        ((375, 500, 3), 256, (256, 341, 3)),
        ((500, 375, 3), 256, (341, 256, 3)),
        ((28, 28, 1), 36, (36, 36, 1)),
        ((28, 28, 1), 20, (20, 20, 1)),
        ((1, 7, 3), 5, (5, 35, 3)),
        ((30, 40, 3), 30, (30, 40, 3)),
    ],
)
def test_rescale_sets_the_short_side(shape, short_side, expected):
    image = np.zeros(shape, np.uint8)
    assert transforms.rescale(image, short_side).shape == expected


def test_rescale_averages_when_shrinking():
    blocks = NOISE.astype(np.float64).reshape(30, 2, 40, 2, 3).mean((1, 3))
    assert_near(transforms.rescale(NOISE, 30), np.rint(blocks), atol=1)
    stripes = np.zeros((90, 120, 1), np.uint8)
    stripes[:, ::2] = 200  # finer than 40 pixels can show
    shrunk = transforms.rescale(stripes, 40)
    assert shrunk.min() >= 80 and shrunk.max() <= 120


def test_rescale_is_bilinear_when_enlarging():
    step = np.repeat(np.uint8([[0, 80]]), 2, 0)[..., np.newaxis]
    row = transforms.rescale(step, 4)[0, :, 0]
    np.testing.assert_array_equal(row, [0, 20, 60, 80])


def test_crops_reach_every_place_and_no_further():
    starts = {
        (down, right): transforms.crop_at(NOISE, 58, down, right)
        for down in (0.0, 0.4, 0.9999)
        for right in (0.0, 0.9999)
    }
    for (down, right), crop in starts.items():
        top, left = round(2 * down), 22 * round(right)
        expected = NOISE[top : top + 58, left : left + 58]
        np.testing.assert_array_equal(crop, expected)


def test_center_crop_is_in_the_middle():
    np.testing.assert_array_equal(transforms.center_crop(NOISE, 59), NOISE[0:59, 10:69])
    np.testing.assert_array_equal(
        transforms.center_crop(NOISE, 40), NOISE[10:50, 20:60]
    )


def test_crop_larger_than_the_image_is_refused():
    for crop in (
        lambda: transforms.crop_at(NOISE, 61, 0.0, 0.0),
        lambda: transforms.center_crop(NOISE, 61),
    ):
        with pytest.raises(ValueError, match="61x61 crop from an image of 60x80"):
            crop()


def test_flip_mirrors_left_to_right():
    np.testing.assert_array_equal(transforms.flip(NOISE), np.fliplr(NOISE))

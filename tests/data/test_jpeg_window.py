import concurrent.futures
import io
import os
import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import PIL.Image
import pytest

from vgg_jax.data import jpeg_window, transforms
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.jpeg_window import MIN_WIDTH, decode_window

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="requirements-jpeg.txt is for Linux"
)
SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
# OpenCV turns the picture as this says; nvImageCodec asks for all of the three entries.
TORN_EXIF = bytes.fromhex(
    "457869660000 4d4d002a00000008 0003"
    "010900030000000100060000 011200030000000100060000 01"
)
CROP = transforms.Crop(40, 32, 0.4, 0.8)


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    picture = PIL.Image.fromarray(image).convert(mode)
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def whole(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.fixture
def whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the whole picture was decoded")

    monkeypatch.setattr(cv2, "imdecode", refuse)


@on_linux
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("restart", "is_progressive"), [(0, 0), (3, 0), (0, 1)])
def test_a_window_is_what_opencv_decodes(sampling, restart, is_progressive):
    rng = np.random.default_rng(0)
    for height, width in rng.integers([1, MIN_WIDTH], 150, (12, 2)):
        options = [
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]),
            *(cv2.IMWRITE_JPEG_RST_INTERVAL, restart),
            *(cv2.IMWRITE_JPEG_PROGRESSIVE, is_progressive),
        ]
        data = cv2.imencode(".jpg", noise(height, width), options)[1].tobytes()
        expected = whole(data)
        for _ in range(40):
            h, w = rng.integers([1, MIN_WIDTH], [height + 1, width + 1])
            y, x = rng.integers(0, [height - h + 1, width - w + 1])
            window = decode_window(data, y, x, h, w)
            np.testing.assert_array_equal(window, expected[y : y + h, x : x + w])


@on_linux
def test_a_file_that_is_cut_short_has_no_windows():
    data = encode(noise(60, 80))
    assert decode_window(data, 0, 0, 8, 8) is not None
    for lost in (1, 2, 100, len(data) - 300, len(data)):
        assert decode_window(data[: len(data) - lost], 0, 0, 8, 8) is None
        with pytest.raises(CorruptImage, match="expected a whole JPEG or PNG"):
            transforms.decode_crop(data[: len(data) - lost], 3, "cat", CROP)


@on_linux
@pytest.mark.usefixtures("whole_is_refused")
@pytest.mark.parametrize("short_side", [224, 256, 374, 375, 376, 512])
def test_crops_of_a_color_jpeg_decode_their_windows(short_side):
    data = encode(noise(375, 500))
    crop = transforms.Crop(short_side, 224, 0.3, 0.9)
    pixels, shape = transforms.decode_crop(data, 3, "cat", crop)
    assert pixels.shape == (224, 224, 3) and shape == (375, 500)


@pytest.mark.parametrize("has_library", [pytest.param(True, marks=on_linux), False])
@pytest.mark.parametrize(
    "kind",
    [
        "color",
        "gray",
        "CMYK",
        "progressive",
        "turned",
        "turned, torn",
        "half",
        "RGB",
        "PNG",
        "behind",
    ],
)
def test_a_crop_is_the_same_whatever_is_decoded(monkeypatch, kind, has_library):
    if not has_library:
        monkeypatch.setattr(jpeg_window, "_codec", lambda: None)
    image = noise(180, 150) if kind == "half" else noise(60, 81)
    if kind == "gray":
        data = encode(image[..., 0])
    elif kind == "CMYK":
        data = encode(image, mode="CMYK")
    elif kind == "turned":
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        data = encode(image, exif=exif)
    elif kind == "turned, torn":
        data = encode(image, exif=TORN_EXIF)
        assert whole(data).shape == (81, 60, 3)
    elif kind == "PNG":
        data = cv2.imencode(".png", image)[1].tobytes()
    else:
        options = {"progressive": {"progressive": True}, "RGB": {"keep_rgb": True}}
        data = encode(image, **options.get(kind, {})) + b"more" * (kind == "behind")
    for channels in (1, 3):
        for short_side in (33, 40, 60, 61, 90, 500):
            for place in ((0.0, 0.0), (0.4, 0.8), (0.999, 0.999)):
                crop = transforms.Crop(short_side, 32, *place)
                pixels, shape = transforms.decode_crop(data, channels, "cat", crop)
                decoded = transforms.decode(data, channels, "cat", short_side)
                assert shape == decoded.shape[:2]
                expected = transforms.rescaled_crop(decoded, crop)
                np.testing.assert_array_equal(pixels, expected)


@on_linux
def test_threads_decode_windows_at_once():
    files = [encode(noise(90 + i, 120)) for i in range(20)]

    def decode(i: int) -> bool:
        data = files[i % len(files)]
        window = decode_window(data, 10, i % 40, 70, 60)
        return np.array_equal(window, whole(data)[10:80, i % 40 : i % 40 + 60])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert all(threads.map(decode, range(400)))


@on_linux
def test_nothing_is_printed_and_the_environment_is_left_alone():
    data = encode(noise(60, 80))
    code = f"""
import os
from vgg_jax.data.jpeg_window import MIN_WIDTH, decode_window
before = dict(os.environ)
data = bytes.fromhex({data.hex()!r})
assert decode_window(data, 0, 0, 8, 8).shape == (8, 8, 3)
assert decode_window(b"no JPEG" + data[-2:], 0, 0, 8, 8) is None
assert dict(os.environ) == before, set(os.environ) ^ set(before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout + done.stderr == b""


@on_linux
def test_a_narrow_window_is_not_decoded_by_itself():
    """With one color for two pixels, the left edge of one column alone has another."""
    data = encode(noise(60, 80))
    assert decode_window(data, 0, 0, 60, MIN_WIDTH - 1) is None


@pytest.fixture
def found_anew() -> Iterator[None]:
    jpeg_window._codec.cache_clear()
    yield
    jpeg_window._codec.cache_clear()


@pytest.mark.usefixtures("found_anew")
@pytest.mark.parametrize("package", ["nvidia_of_nobody.nvimgcodec", "jax.nvimgcodec"])
def test_without_the_library_there_are_no_windows(monkeypatch, caplog, package):
    monkeypatch.setattr(jpeg_window, "PACKAGE", package)
    assert decode_window(encode(noise(60, 80)), 0, 0, 8, 8) is None
    assert not caplog.records


@on_linux
@pytest.mark.usefixtures("found_anew")
@pytest.mark.parametrize("trouble", ["version", "leftovers", "decoder", "disk"])
def test_a_library_that_cannot_be_used_is_a_warning(
    tmp_path, monkeypatch, caplog, trouble
):
    if trouble == "version":
        monkeypatch.setattr(jpeg_window, "VERSION", "0.8.")
    elif trouble == "leftovers":
        (tmp_path / "left_over" / "codec").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(jpeg_window, "PACKAGE", "left_over.codec")
    else:
        target = (jpeg_window, "_new_decoder")
        if trouble == "disk":
            target = (jpeg_window.tempfile, "TemporaryDirectory")
        monkeypatch.setattr(*target, refuse)
    data = encode(noise(60, 80))
    assert decode_window(data, 0, 0, 8, 8) is None
    assert decode_window(data, 0, 0, 8, 8) is None
    [record] = caplog.records
    assert "pictures are decoded whole" in record.getMessage()


def refuse(*arguments: object) -> None:
    raise OSError("no space left")

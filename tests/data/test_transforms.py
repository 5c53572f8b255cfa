import io
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from vgg_jax.data import transforms
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.headers import jpeg_header, jpeg_scans

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
def test_decode_gives_rgb_and_gray(picture, file_format):
    data = encode(PIL.Image.fromarray(picture(60, 81)), file_format, quality=95)
    reference = PIL.Image.open(io.BytesIO(data))
    assert_near(transforms.decode(data, 3), reference, atol=1)
    gray = transforms.decode(data, 1)
    assert gray.shape == (60, 81, 1)
    assert_near(gray[..., 0], reference.convert("L"), atol=2)


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
    assert jpeg_header(data) == (20, 30, 3, True, True)
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
    with pytest.raises(CorruptImage, match=r"photos/cat.*truncated"):
        transforms.decode(data[:-lost], 3, "photos/cat")


@pytest.mark.parametrize("data", [b"", b"GIF? no, text"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(CorruptImage, match=r"cat.*JPEG or PNG"):
        transforms.decode(data, 1, "cat")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_decode_refuses_pictures_of_absurd_size(file_format):
    """Small files whose headers promise 65,000 x 65,000 pixels."""
    data = bytearray(encode(PIL.Image.fromarray(NOISE), file_format))
    if file_format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    else:
        data[16:24] = struct.pack(">II", 65_000, 65_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(CorruptImage, match=r"cannot decode cat: .*pixels"):
        transforms.decode(bytes(data), 3, "cat")


@pytest.fixture
def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever needs OpenCV to decode an image fails."""

    def decode(*arguments: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)


@pytest.mark.usefixtures("forbid_decoding")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_size_is_known_before_anything_is_decoded(file_format):
    data = encode(PIL.Image.fromarray(NOISE), file_format)
    message = "decode cat: expected at most 4,799 pixels, .*max_pixels.*, found 60x80"
    with pytest.raises(CorruptImage, match=message):
        transforms.decode(data, 3, "cat", max_pixels=4799)
    with pytest.raises(AssertionError, match="was decoded"):
        transforms.decode(data, 3, "cat", max_pixels=4800)
    thread = PIL.Image.fromarray(np.zeros((2, 130, 3), np.uint8))
    with pytest.raises(CorruptImage, match="found 2x130"):
        transforms.decode(encode(thread, file_format), 3, "cat")


def png_chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG, which may lie about its length."""
    length = len(content) if length is None else length
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", length) + kind + content + checksum


@pytest.mark.usefixtures("forbid_decoding")
@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"IEND"])
@pytest.mark.parametrize("length", [2**32 - 16, 2**31 - 1, 2**24])
def test_a_png_is_whole_before_it_is_decoded(kind, length):
    """OpenCV reserves what a chunk claims to hold: 69 bytes took 4 GB."""
    data = encode(PIL.Image.fromarray(NOISE), "PNG")
    place = data.index(kind) - 4 if kind != b"tEXt" else 33
    data = data[:place] + png_chunk(kind, b"a\0b", length) + data[place:]
    with pytest.raises(CorruptImage, match="expected a whole JPEG or PNG"):
        transforms.decode(data, 3, "cat")


@pytest.mark.parametrize("place", ["before", "after"])
def test_chunks_of_a_png_that_make_no_pixels_are_not_decoded(place, monkeypatch):
    """A text of 800 kB can unpack to 800 MB, and an animation to any number."""
    data = encode(PIL.Image.fromarray(NOISE), "PNG")
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))
    offset = 33 if place == "before" else len(data) - 12
    shown = []
    decode = cv2.imdecode
    monkeypatch.setattr(
        cv2, "imdecode", lambda *a: shown.append(a[0].tobytes()) or decode(*a)
    )
    image = transforms.decode(data[:offset] + text * 3 + data[offset:] + b"more", 3)
    np.testing.assert_array_equal(image, NOISE)
    assert shown == [data]


def progressive_jpeg(scans: int) -> bytes:
    """A gray JPEG of 8x8 pixels, in one pass and `scans` further empty ones."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    table = bytes([1] + [0] * 15)  # of one symbol, whose code is the bit 0
    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + b"\1" * 64),
        segment(0xC2, struct.pack(">BHHB", 8, 8, 8, 1) + b"\1\x11\0"),
        segment(0xC4, b"\0" + table + b"\0"),
        segment(0xC4, b"\x10" + table + b"\0"),
        segment(0xDA, b"\1\1\0\0\0\0") + b"\0",
    ]
    for i in range(scans):
        parts.append(segment(0xDA, b"\1\1\0" + bytes([1 + i % 63] * 2) + b"\0") + b"\0")
    return b"".join((*parts, b"\xff\xd9"))


def test_a_jpeg_of_too_many_passes_is_refused():
    """Each is a pass over all pixels: 520 kB took 53 s."""
    assert transforms.decode(progressive_jpeg(60), 1).shape == (8, 8, 1)
    with pytest.raises(CorruptImage, match=r"use cat: .* at most 100 scans, found 101"):
        transforms.decode(progressive_jpeg(100), 1, "cat")


@pytest.mark.parametrize("before", [b"", b"\0", b"\xda", b"\xff"])
def test_passes_are_counted_wherever_they_begin(before):
    marker = b"\xff\xda"
    for data in (b"", marker[:1], marker, marker * 3 + b"a" + marker * 2):
        assert jpeg_scans(before + data) == (before + data).count(marker)


def test_of_a_jpeg_whose_first_scan_holds_all_others_are_not_read():
    """So they need not be counted; they are where a component has a scan of its own."""
    data = encode(PIL.Image.fromarray(NOISE), "JPEG")
    scan = data.index(b"\xff\xda")
    repeated = data[:-2] + data[scan:-2] * 200 + data[-2:]
    np.testing.assert_array_equal(
        transforms.decode(repeated, 3), transforms.decode(data, 3)
    )
    separate = bytearray(repeated)
    separate[scan + 4] = 1
    assert not jpeg_header(bytes(separate)).is_one_scan
    with pytest.raises(CorruptImage, match="at most 100 scans, found 201"):
        transforms.decode(bytes(separate), 3)


@pytest.mark.parametrize(
    ("frame", "is_one_scan"),
    [
        (0xC0, True),
        (0xC1, True),
        (0xC2, False),  # progressive
        (0xC3, False),  # lossless
        (0xC9, True),  # by arithmetic coding
        (0xCA, False),  # progressive, by arithmetic coding
    ],
)
def test_the_frame_says_whether_one_scan_can_hold_all(frame, is_one_scan):
    data = encode(PIL.Image.fromarray(NOISE), "JPEG")
    before = data[: data.index(b"\xff\xc0")]
    after = data[len(before) + 2 :]
    this, other = (
        bytes((0xFF, kind)) for kind in (frame, 0xC2 if is_one_scan else 0xC0)
    )
    assert jpeg_header(before + this + after).is_one_scan == is_one_scan
    second = other + data[len(before) + 2 : len(before) + 19]  # the first one counts
    several = before + this + data[len(before) + 2 : len(before) + 19] + second
    assert jpeg_header(several + data[len(before) + 19 :]).is_one_scan == is_one_scan


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "TIFF", "WEBP", "PPM"])
@pytest.mark.usefixtures("forbid_decoding")
def test_other_formats_are_refused(file_format):
    """Their sizes would have to be read, too, and fewer decoders see strange files."""
    data = encode(PIL.Image.fromarray(NOISE), file_format)
    with pytest.raises(CorruptImage, match="expected a whole JPEG or PNG"):
        transforms.decode(data, 3)


def test_a_jpeg_may_be_padded_before_its_markers():
    data = encode(PIL.Image.fromarray(NOISE), "JPEG")
    frame = data.index(b"\xff\xc0")
    for padding in (b"\xff" * 5, b"\xff\x00", b"\xff\xd0", b"some"):
        padded = data[:frame] + padding + data[frame:]
        assert jpeg_header(padded) == (60, 80, 3, False, True)
    padded = transforms.decode(data[:frame] + b"\xff" * 5 + data[frame:], 3)
    np.testing.assert_array_equal(padded, transforms.decode(data, 3))


def test_of_several_frames_the_first_counts():
    """libjpeg refuses the file, which says nothing of a size that is claimed first."""
    data = encode(PIL.Image.fromarray(NOISE), "JPEG")
    frame = data.index(b"\xff\xc0")
    other = bytearray(data[frame : frame + 19])
    other[5:9] = struct.pack(">HH", 7, 9)
    for header in (data[:frame] + bytes(other), data[: frame + 19] + bytes(other)):
        shape = jpeg_header(header + data[frame:])[:2]
        assert shape == ((7, 9) if len(header) < frame + 20 else (60, 80))


def test_a_jpeg_of_padding_alone_is_refused_at_once():
    """Padding was looked for from each of its bytes on: 40 kB took 185 s."""
    began = time.process_time()
    with pytest.raises(CorruptImage, match="expected a whole JPEG or PNG"):
        transforms.decode(b"\xff\xd8" + b"\xff" * 20_000 + b"\0", 3)
    assert time.process_time() - began < 1


# Run in a process of its own, which may not take more than 400 MB for the images.
MUTATIONS = """
import io, random, resource, struct, sys, zlib
import PIL.Image
import numpy as np
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.transforms import decode

def encode(file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()

def with_checksums(data):
    out, offset = data[:8], 8
    while offset + 12 <= len(data):
        end = offset + 8 + int.from_bytes(data[offset : offset + 4], "big")
        chunk = data[offset + 4 : end]
        out += data[offset:end] + struct.pack(">I", zlib.crc32(chunk))
        offset = end + 4
    return out

pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
image = PIL.Image.fromarray(pixels)
originals = [
    encode("JPEG"),
    encode("JPEG", progressive=True),
    encode("PNG"),
    encode("PNG", save_all=True, append_images=[image.rotate(90)]),
]
for original in originals:
    assert decode(original, 3).shape == (24, 32, 3)
vm = [line.split()[1] for line in open("/proc/self/status") if "VmSize" in line]
limit = int(vm[0]) * 1024 + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
rng = random.Random(0)
decoded = refused = 0
for _ in range(1500):
    data = bytearray(rng.choice(originals))
    for _ in range(rng.choice((1, 2, 8))):
        i = rng.randrange(min(len(data), rng.choice((40, 200, 10**9))))
        change = rng.randrange(4)
        if change == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif change == 1:
            number = rng.choice((0, 1, 10**4, 65535, 2**30, 2**31 - 1, 2**32 - 1))
            data[i : i + 4] = struct.pack(">I", number)
        elif change == 2:
            del data[i : i + rng.randrange(1, 20)]
        else:
            data[i:i] = data[rng.randrange(len(data)) :][: rng.randrange(1, 60)]
    data = bytes(data)
    if data[1:4] == b"PNG" and rng.random() < 0.7:
        data = with_checksums(data)
    try:
        height, width, _ = decode(data, rng.choice((1, 3)), max_pixels=10**7).shape
        assert height * width <= 10**7
        decoded += 1
    except CorruptImage as error:
        assert "memory" not in str(error), error
        refused += 1
print(decoded, refused)
"""


def test_damaged_images_take_little_memory_and_time():
    done = subprocess.run(
        [sys.executable, "-c", MUTATIONS], capture_output=True, text=True, timeout=100
    )
    assert not done.returncode, done.stderr[-2000:]
    assert min(map(int, done.stdout.split())) > 100


def test_decode_refuses_a_thread_of_an_image():
    thread = PIL.Image.fromarray(np.zeros((2, 130, 3), np.uint8))
    message = "cannot use cat: expected one side at most 64 times .*, found 2x130"
    with pytest.raises(CorruptImage, match=message):
        transforms.decode(encode(thread, "PNG"), 3, "cat")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_png_called_jpeg_or_a_jpeg_of_any_kind_has_its_header_read(mode):
    image = PIL.Image.fromarray(NOISE).convert(mode)
    for options in ({}, {"progressive": True}, {"comment": b"c" * 70}):
        data = encode(image, "JPEG", **options)
        is_one_scan = "progressive" not in options
        assert jpeg_header(data) == (60, 80, len(mode), False, is_one_scan)
    assert not any(jpeg_header(encode(image.convert("RGB"), "PNG")))
    for bad in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x00", data[:50]):
        assert not any(jpeg_header(bad))


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(picture):
    data = encode(PIL.Image.fromarray(picture(500, 700)), "JPEG", quality=95)
    sides = {s: min(transforms.decode(data, 3, "", s).shape[:2]) for s in range(8, 300)}
    assert all(side >= 2 * s or side == 500 for s, side in sides.items())
    assert sides[31] == 63 and sides[32] == 125 and sides[62] == 125
    assert sides[63] == 250 and sides[125] == 250 and sides[126] == 500
    assert transforms.decode(data, 1, "", 32).shape == (125, 175, 1)
    png = encode(PIL.Image.fromarray(picture(500, 700)), "PNG")
    assert transforms.decode(png, 3, "", 31).shape == (500, 700, 3)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "turned"])
def test_a_part_sized_decoding_hardly_differs_after_rescaling(photographs, mode):
    for photograph in photographs:
        image = PIL.Image.open(io.BytesIO(photograph)).crop((0, 0, 512, 416))
        options = {}
        if mode == "CMYK":
            image = image.convert("CMYK")
        if mode == "turned":
            options["exif"] = PIL.Image.Exif()
            options["exif"][0x0112] = 6
        data = encode(image, "JPEG", quality=95, **options)
        whole = transforms.decode(data, 3)
        part = transforms.decode(data, 3, "", 104)
        assert min(part.shape[:2]) == 208
        assert (part.shape[0] > part.shape[1]) == (whole.shape[0] > whole.shape[1])
        exact, near, aliased = (
            transforms.rescale(pixels, 104).astype(int)
            for pixels in (whole, part, np.ascontiguousarray(whole[::2, ::2]))
        )
        error = np.abs(near - exact).mean()
        assert error < 0.7 and error < np.abs(aliased - exact).mean() / 3


def test_a_huge_jpeg_takes_little_memory():
    gradient = np.linspace(0, 255, 9000).astype(np.uint8)[:, np.newaxis]
    image = np.broadcast_to(gradient, (9000, 12_000))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    decoded = transforms.decode(data, 3, "", 256)
    assert decoded.shape == (1125, 1500, 3)
    crop = transforms.rescaled_crop(decoded, transforms.Crop(256, 224, 0.999, 0.5))
    assert_near(crop[:, 100, 0], np.linspace(32, 255, 224), atol=2)


def test_a_tiny_image_is_enlarged_to_the_crop(picture):
    data = encode(PIL.Image.fromarray(picture(5, 8)), "PNG")
    image = transforms.decode(data, 3, "", 256)
    crop = transforms.rescaled_crop(image, transforms.Crop(256, 224, 0.0, 0.999))
    assert_near(crop, transforms.rescale(image, 256)[:224, -224:], atol=1)
    pixel = transforms.decode(encode(PIL.Image.new("RGB", (1, 1)), "PNG"), 3, "", 32)
    assert transforms.rescaled_crop(pixel, transforms.Crop(32, 32, 0.5, 0.5)).shape == (
        32,
        32,
        3,
    )


def test_decode_refuses_other_channel_counts():
    with pytest.raises(ValueError, match=r"expected 1 .* or 3 .* found 4"):
        transforms.decode(b"", 4)


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [
        ((375, 500, 3), 256, (256, 341, 3)),
        ((500, 375, 3), 256, (341, 256, 3)),
        ((375, 500, 3), 224, (224, 299, 3)),  # 298.7
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
        (down, right): transforms.cut(NOISE, 58, transforms.place_crop(down, right))[0]
        for down in (0.0, 0.4, 0.9999)
        for right in (0.0, 0.9999)
    }
    for (down, right), crop in starts.items():
        top, left = round(2 * down), 22 * round(right)
        expected = NOISE[top : top + 58, left : left + 58]
        np.testing.assert_array_equal(crop, expected)


def test_the_crop_before_rescaling_is_the_one_after_it(photographs):
    """Where the scale is a whole number both see the same pixels."""
    image = transforms.decode(photographs[0], 3)[:320, :480]
    after = transforms.rescale(image, 160)
    crop = transforms.Crop(160, 128, 10 / 65, 30 / 225)
    before = transforms.rescaled_crop(image, crop)
    np.testing.assert_array_equal(before, after[5:133, 15:143])
    gray = transforms.rescaled_crop(image[..., :1], crop)
    np.testing.assert_array_equal(gray, before[..., :1])


def test_sampling_is_as_near_to_an_ideal_filter_as_the_mean_is(photographs):
    """The ideal is Lanczos's filter; OpenCV has none of it for shrinking."""
    image = transforms.decode(photographs[0], 3)
    for side in range(224, 428, 20):
        square = np.ascontiguousarray(image[:side, 100 : 100 + side])
        picture = PIL.Image.fromarray(square)
        ideal = np.asarray(picture.resize((112, 112), PIL.Image.Resampling.LANCZOS))
        mean = cv2.resize(square, (112, 112), interpolation=cv2.INTER_AREA)
        sampled = transforms.sample(square, 112)
        far, near = (
            np.abs(pixels.astype(int) - ideal).mean() for pixels in (mean, sampled)
        )
        assert near < 1.15 * far
        assert (side % 112 == 0) == np.array_equal(sampled, mean)


def test_a_crop_can_shrink_by_the_exact_mean(photographs):
    image = transforms.decode(photographs[0], 3)  # 427x640
    place = (256, 224, 0.5, 0.5)  # a cut of 374 pixels, 27 down and 133 right
    expected = cv2.resize(
        image[27:401, 133:507], (224, 224), interpolation=cv2.INTER_AREA
    )
    exact = transforms.rescaled_crop(image, transforms.Crop(*place, True))
    np.testing.assert_array_equal(exact, expected)
    sampled = transforms.rescaled_crop(image, transforms.Crop(*place))
    assert 0 < np.abs(sampled.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("short_side", [250, 301, 463])
def test_a_crop_of_a_large_image_is_interpolated_alone(channels, short_side):
    image = NOISE[:50, :, :channels]
    whole = transforms.rescale(image, short_side)
    assert whole.shape[0] * whole.shape[1] >= transforms.LARGE
    for size in (1, 100, 250):
        for place in ((0.0, 0.0), (0.3, 0.6), (0.9999, 0.9999)):
            [expected] = transforms.cut(whole, size, transforms.place_crop(*place))
            crop = transforms.Crop(short_side, size, *place)
            pixels = transforms.rescaled_crop(image, crop)
            assert_near(pixels, expected, atol=1)
    one_pixel = transforms.rescaled_crop(image[:1, :1], transforms.Crop(400, 9, 0, 0))
    np.testing.assert_array_equal(
        one_pixel, np.broadcast_to(image[:1, :1], (9, 9, channels))
    )


def test_a_crop_of_a_smaller_image_is_cut_from_all_of_it():
    image = NOISE[:50]
    whole = transforms.rescale(image, 249)
    assert whole.shape[0] * whole.shape[1] < transforms.LARGE
    pixels = transforms.rescaled_crop(image, transforms.Crop(249, 100, 0.3, 0.6))
    [expected] = transforms.cut(whole, 100, transforms.place_crop(0.3, 0.6))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("short_side", [40, 47, 59])
def test_the_crop_before_rescaling_has_the_scale_and_reaches_the_edges(short_side):
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 3 * np.arange(60)[:, np.newaxis]
    image[..., 1] = 3 * np.arange(80)
    ends = [
        transforms.rescaled_crop(image, transforms.Crop(short_side, 32, *place)).astype(
            float
        )
        / 3
        for place in ((0.0, 0.0), (0.9999, 0.9999))
    ]
    scale = 60 / short_side
    first, last = (scale - 1) / 2, 32 * scale - (scale + 1) / 2  # centers of its pixels
    for channel in (0, 1):
        rows = np.moveaxis(ends[0], channel, 0)
        np.testing.assert_allclose(rows[0, ..., channel], first, atol=0.5)
        np.testing.assert_allclose(rows[-1, ..., channel], last, atol=0.8)
        far = np.moveaxis(ends[1], channel, 0)[-1, ..., channel]
        np.testing.assert_allclose(far, (59, 79)[channel] - first, atol=0.5)


def test_center_crop_is_in_the_middle():
    np.testing.assert_array_equal(transforms.center_crop(NOISE, 59), NOISE[0:59, 10:69])
    np.testing.assert_array_equal(
        transforms.center_crop(NOISE, 40), NOISE[10:50, 20:60]
    )


def test_crop_larger_than_the_image_is_refused():
    for crop in (
        lambda: transforms.cut(NOISE, 61, transforms.place_crop(0.0, 0.0)),
        lambda: transforms.center_crop(NOISE, 61),
    ):
        with pytest.raises(ValueError, match="61x61 crop from an image of 60x80"):
            crop()
    with pytest.raises(ValueError, match="33x33 crop from an image of short side 32"):
        transforms.rescaled_crop(NOISE, transforms.Crop(32, 33, 0.0, 0.0))


def test_flip_mirrors_left_to_right():
    for image in (NOISE, NOISE[..., :1], NOISE[3:50, 5:60]):
        np.testing.assert_array_equal(transforms.flip(image), np.fliplr(image))

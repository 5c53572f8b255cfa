"""Pictures that are damaged or made to harm: refused, in bounded memory and time."""

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, wrong
from tests.torture.isolated import (
    MAX_BYTES,
    MAX_CPU_SECONDS,
    measure,
    run_isolated,
)
from tests.torture.mutations import MUTATIONS, Mutation
from vgg_jax.data import transforms
from vgg_jax.data.transforms import CorruptImage

NAME = "folder/picture.png"


def _encode(kind: str, **options: object) -> bytes:
    """Encodes a picture of 60x70 pixels by Pillow; options are those of `save`."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 7, 3), np.uint8)
    picture = Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1))
    file = io.BytesIO()
    mode = options.pop("mode", "RGB")
    picture.convert(str(mode)).save(file, format=kind, **options)
    return file.getvalue()


def _encode_deep() -> bytes:
    """Encodes a PNG of 16 bits."""
    pixels = np.arange(60 * 70, dtype=np.uint16).reshape(60, 70) * 15
    return bytes(cv2.imencode(".png", pixels)[1])


def _rotated() -> bytes:
    """Encodes a JPEG that its EXIF data say is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encode("JPEG", exif=exif)


PICTURES: dict[str, Callable[[], bytes]] = {
    "gray PNG": lambda: _encode("PNG", mode="L"),
    "color PNG": lambda: _encode("PNG"),
    "palette PNG": lambda: _encode("PNG", mode="P"),
    "one-bit PNG": lambda: _encode("PNG", mode="1"),
    "transparent PNG": lambda: _encode("PNG", mode="RGBA"),
    "deep PNG": _encode_deep,
    "gray JPEG": lambda: _encode("JPEG", mode="L"),
    "color JPEG": lambda: _encode("JPEG", quality=90),
    "progressive JPEG": lambda: _encode("JPEG", progressive=True),
    "CMYK JPEG": lambda: _encode("JPEG", mode="CMYK"),
    "turned JPEG": _rotated,
}


@functools.cache
def _picture(name: str) -> bytes:
    return PICTURES[name]()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Makes a chunk of a PNG, with its checksum."""
    sum_of_all = zlib.crc32(kind + content)
    return (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_of_all)
    )


def claim_size(rng: np.random.Generator, data: bytes) -> bytes:
    """Changes the height and width in the header; a PNG's checksum is right."""
    height, width = (int(2 ** rng.uniform(0, 16)) for _ in range(2))
    if data.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + data[24:29]
        return data[:8] + chunk(b"IHDR", header) + data[33:]
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        place = data.find(marker)
        if place >= 0:
            size = struct.pack(">HH", height, width)
            return data[: place + 5] + size + data[place + 9 :]
    raise AssertionError("a JPEG has a frame")


def claim_length(rng: np.random.Generator, data: bytes) -> bytes:
    """Changes the length of a chunk of a PNG, or of a segment of a JPEG."""
    place, length = (33, 4) if data.startswith(b"\x89PNG") else (4, 2)
    claimed = int(2 ** rng.uniform(0, 8 * length)) - 1
    return data[:place] + claimed.to_bytes(length, "big") + data[place + length :]


@functools.cache
def _bomb(side: int, depth: int) -> bytes:
    """Makes a PNG of side x side black pixels in some hundred kilobytes."""
    rows = zlib.compressobj(9)
    line = bytes(1 + -(-side * depth // 8))
    content = b"".join(rows.compress(line) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    )


def bomb(rng: np.random.Generator, data: bytes) -> bytes:
    """Makes a small file of very many pixels."""
    return _bomb(int(rng.choice([9_000, 20_000, 40_000])), 1)


def text_bomb(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts a text of 300 MB, compressed, into a PNG; a JPEG gets many segments."""
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(b"zTXt", b"a\0\0" + _zeros()) + data[33:]
    return data[:2] + 100 * (b"\xff\xef\xff\xff" + bytes(0xFFFD)) + data[2:]


@functools.cache
def _zeros() -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(10**7)) for _ in range(30)) + packer.flush()


@dataclasses.dataclass(frozen=True)
class Harm:
    """A change of a picture.

    Args:
        mutate: makes the change.
        is_noticed: whether a file with this change, of these suffixes, is refused or
            gives the picture as it was: a PNG has checksums.
    """

    mutate: Mutation
    is_noticed: tuple[str, ...] = ()


HARMS = {
    **{name: Harm(mutate, ("PNG",)) for name, mutate in MUTATIONS.items()},
    "truncated": Harm(MUTATIONS["truncated"], ("PNG", "JPEG")),
    "another size": Harm(claim_size),
    "another length": Harm(claim_length, ("PNG",)),
    "a bomb": Harm(bomb),
    "a bomb of text": Harm(text_bomb, ("PNG", "JPEG")),
}

KINDS = {
    f"{picture}, {harm}": (picture, harm) for picture in PICTURES for harm in HARMS
}


def judge(case: Case, folder: Path) -> Outcome:
    """Decodes a damaged picture; looks at the result, the time and the memory."""
    picture, harm = KINDS[case.kind]
    rng = case.rng()
    channels = int(rng.choice([1, 3]))
    short_side = None if rng.random() < 0.5 else 32
    original = _picture(picture)
    damaged = HARMS[harm].mutate(rng, original)
    result, effort = measure(
        lambda: transforms.decode(damaged, channels, NAME, short_side)
    )
    if effort.excess:
        return wrong(effort.excess)
    if isinstance(result, CorruptImage):
        return RIGHT if NAME in str(result) else wrong(f"no name: {result}"[:200])
    if isinstance(result, Exception):
        return wrong(f"{type(result).__name__}: {result}"[:200])
    is_image = result.dtype == np.uint8 and result.shape[2:] == (channels,)
    if not (is_image and min(result.shape) > 0):
        return lost(f"an array {result.dtype}{list(result.shape)}")
    if damaged != original and picture.endswith(HARMS[harm].is_noticed or ("no",)):
        expected = transforms.decode(original, channels, NAME, short_side)
        if not np.array_equal(result, expected):
            return lost("other pixels, and nobody says so")
    return RIGHT


ATTACK = Attack(
    name="images",
    does="Pictures of eleven kinds, PNG and JPEG, with flipped bits, parts "
    "overwritten, cut out, repeated or inserted, ends missing, false sizes and "
    "lengths, and bombs",
    right="refused by an error that names the picture, or decoded; a truncated one, "
    "and a PNG with damage, never to other pixels; within "
    f"{MAX_BYTES >> 20:,} MiB and {MAX_CPU_SECONDS:g} s of CPU",
    weight=1,
    kinds=KINDS,
    run=run_isolated,
    batch=100,
)

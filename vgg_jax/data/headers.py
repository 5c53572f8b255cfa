"""This module reads what a JPEG or PNG says of itself, before anything is decoded.

A decoder takes memory and time by what a file promises, and a file of some hundred
bytes can promise gigabytes. So its size is known first, and the decoder is given only
what makes pixels.
"""

import re
import struct
from typing import NamedTuple

import numpy as np

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"

# A marker of a JPEG, behind any number of bytes FF; to look for these as well would
# take the square of their number.
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
# The markers that head a frame: of the Cx, C4, C8 and CC are tables.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Those of frames that one scan can hold; others are lossless, or have many scans.
SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC9))
WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}
END, SCAN, APP1 = 0xD9, 0xDA, 0xE1

# The chunks of a PNG that make its pixels, and the one that says which way is up. Those
# of animations, texts and profiles make work and no pixels.
PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))


class JpegHeader(NamedTuple):
    """The facts in the header of a JPEG; zeros for a file of another kind."""

    height: int
    width: int
    components: int  # 1 is gray, 3 is color, 4 is CMYK
    has_exif: bool  # which may say that the picture is to be turned
    is_one_scan: bool = False  # the first scan holds the image, and no other is read


def jpeg_header(data: bytes) -> JpegHeader:
    """Reads the header of a JPEG without decoding it, as libjpeg would."""
    offset = len(JPEG) if data.startswith(JPEG) else len(data)
    frame, has_exif, is_sequential, in_scan = (0, 0, 0), False, False, 0
    while match := JPEG_MARKER.search(data, offset):
        marker, offset = match[1][0], match.end()
        if marker in FRAMES and offset + 8 <= len(data) and not any(frame):
            frame = struct.unpack_from(">HHB", data, offset + 3)
            is_sequential = marker in SEQUENTIAL
        if marker in (END, SCAN):
            in_scan = int.from_bytes(data[offset + 2 : offset + 3], "big")
            break
        if marker == APP1 and data.startswith(b"Exif", offset + 2):
            has_exif = True
        if marker not in WITHOUT_LENGTH:
            offset += int.from_bytes(data[offset : offset + 2], "big")
    is_one_scan = is_sequential and in_scan == frame[2]
    return JpegHeader(*frame, has_exif, is_one_scan)


def jpeg_scans(data: bytes) -> int:
    """Counts the passes over the image that a JPEG is made of: at least so many."""
    # By pairs of bytes, from the first and from the second on: numpy takes less than
    # half the time of `bytes.count`.
    marker = SCAN << 8 | 0xFF
    pairs = (
        np.frombuffer(data, "<u2", (len(data) - start) // 2, start)
        for start in (0, 1)
        if len(data) - start >= 2
    )
    return sum(int(np.count_nonzero(words == marker)) for words in pairs)


def png_size(data: bytes) -> tuple[int, int]:
    """Reads the height and width of a PNG; zeros for a file of another kind."""
    if data.startswith(PNG + b"\0\0\0\rIHDR") and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    return 0, 0


def png_pixels(data: bytes) -> bytes | None:
    """Leaves out the chunks of a PNG that make no pixels.

    Returns:
        The file without them, the file itself where it has none; None where a chunk is
        longer than what is there of it, or the last one is missing.
    """
    parts, begin, offset = [], 0, len(PNG)
    kind = b""
    while kind != b"IEND":
        if offset + 12 > len(data):
            return None
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + length + 12
        if end > len(data):
            return None
        if kind not in PNG_CHUNKS:
            parts.append(data[begin:offset])
            begin = end
        offset = end
    if not parts and offset == len(data):
        return data
    return b"".join((*parts, data[begin:offset]))

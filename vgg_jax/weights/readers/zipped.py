"""This module reads zip files in which nothing is compressed, without copying them.

PyTorch and Keras keep weights in such files.
"""

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, cast

import numpy as np

from vgg_jax.weights.readers.mapped import Refusal, map_array

_HEADER = struct.Struct("<26xHH")  # before an entry; the lengths of what follows it


def entries_of(
    file: mmap.mmap | io.BytesIO, view: memoryview
) -> dict[str, zipfile.ZipInfo]:
    """Returns what a zip file says of its entries, by their names.

    Raises:
        ValueError: two have the same name or share bytes; damage can raise
            `zipfile.BadZipFile` too.
    """
    with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
        infos = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    end = 0
    for entry in infos:
        # Small files with many entries of the same bytes would take hours to read.
        if entry.header_offset < end:
            raise Refusal(
                f"{entry.filename!r:.100} has bytes of another entry of the zip file; "
                "it is damaged"
            )
        end = entry.header_offset + _HEADER.size + entry.compress_size
    entries = {entry.filename: entry for entry in infos}
    if len(entries) < len(infos):
        raise Refusal("the zip file has two entries of one name; it is damaged")
    return entries


def entry_bytes(
    view: memoryview, entries: Mapping[str, zipfile.ZipInfo], name: str
) -> memoryview:
    """Returns the bytes of an entry.

    Raises:
        ValueError: there is none of that name, or it is compressed or damaged.
    """
    if name not in entries:
        raise Refusal(f"the zip file lacks {name!r:.100}; it is damaged or not whole")
    entry = entries[name]
    is_plain = entry.compress_size == entry.file_size and not entry.flag_bits & 1
    if entry.compress_type != zipfile.ZIP_STORED or not is_plain:
        raise Refusal(
            f"{name!r:.100} is compressed or encrypted, as neither PyTorch nor "
            "Keras saves it; unpack the file and zip it with `zip -0`"
        )
    start = entry.header_offset
    header = bytes(map_array(view, start, (_HEADER.size,), np.dtype("u1")))
    start += _HEADER.size + sum(_HEADER.unpack(header))
    map_array(view, start, (entry.file_size,), np.dtype("u1"))
    data = view[start : start + entry.file_size]
    # PyTorch can leave the checksum out, which is then 0.
    if header[:4] != b"PK\x03\x04" or entry.CRC not in (0, zlib.crc32(data)):
        raise Refusal(f"{name!r:.100} has changed since it was written: get it anew")
    return data

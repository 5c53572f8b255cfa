"""Damage to bytes, at random: what disks, networks and strangers do to a file."""

from collections.abc import Callable

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]


def flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    """Flips one to eight bits."""
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts random bytes in the place of a part."""
    begin, end = _part(rng, data)
    return data[:begin] + rng.bytes(end - begin) + data[end:]


def clear(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts zeros in the place of a part, as a disk does that lost a block."""
    begin, end = _part(rng, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def cut_out(rng: np.random.Generator, data: bytes) -> bytes:
    """Leaves a part out."""
    begin, end = _part(rng, data)
    return data[:begin] + data[end:]


def repeat(rng: np.random.Generator, data: bytes) -> bytes:
    """Has a part twice."""
    begin, end = _part(rng, data)
    return data[:end] + data[begin:]


def insert(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts random bytes between two others."""
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 100))) + data[place:]


def pad(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts many equal bytes between two others, which some formats allow."""
    place = int(rng.integers(0, len(data)))
    byte = (b"\x00", b"\xff")[int(rng.integers(2))]
    return data[:place] + byte * int(rng.integers(1, 200_000)) + data[place:]


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    """Leaves the end out, as a copy does that was interrupted."""
    return data[: int(rng.integers(0, len(data)))]


def empty(rng: np.random.Generator, data: bytes) -> bytes:
    """Leaves nothing."""
    return b""


def append(rng: np.random.Generator, data: bytes) -> bytes:
    """Puts random bytes behind the end."""
    return data + rng.bytes(int(rng.integers(1, 1000)))


MUTATIONS: dict[str, Mutation] = {
    "bits flipped": flip_bits,
    "overwritten": overwrite,
    "cleared": clear,
    "cut out": cut_out,
    "repeated": repeat,
    "inserted": insert,
    "padded": pad,
    "truncated": truncate,
    "empty": empty,
    "appended": append,
}


def _part(rng: np.random.Generator, data: bytes) -> tuple[int, int]:
    """Chooses a part of up to 512 bytes."""
    begin = int(rng.integers(0, len(data)))
    return begin, min(len(data), begin + int(rng.integers(1, 513)))

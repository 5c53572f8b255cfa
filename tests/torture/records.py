"""Damaged ArrayRecord files and metadata: refused by name, never other pictures."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, wrong
from tests.torture.isolated import (
    MAX_BYTES,
    MAX_CPU_SECONDS,
    measure,
    run_isolated,
)
from tests.torture.mutations import MUTATIONS
from vgg_jax.config import DataConfig
from vgg_jax.data.base import Example
from vgg_jax.data.prepare.writer import Contents, Member, Preparation
from vgg_jax.data.sources import open_source

NAME, VERSION, CLASS_NAMES = "shapes", "1.0.0", ("ant", "bee", "cat")
COUNTS = {"train": 60, "test": 12}

KINDS = {
    f"{what}, {damage}": (pattern, damage)
    for what, pattern in {
        "records": "*.array_record*",
        "metadata": "*.json",
        "labels": "*.labels.txt",
    }.items()
    for damage in MUTATIONS
}


def _read(split: str, member: Member) -> bytes:
    """Draws a picture of noise, which does not compress."""
    rng = np.random.default_rng([member.label, *member.name.encode()])
    image = rng.integers(0, 256, (32, 36, 3), np.uint8)
    return bytes(cv2.imencode(".png", image)[1])


@contextlib.contextmanager
def _open(folder: Path | None, partial: bool) -> Iterator[Contents]:
    members = {
        split: [
            Member(name=f"{split}{i}", label=i % 3, offset=0, size=4_000)
            for i in range(count)
        ]
        for split, count in COUNTS.items()
    }
    yield Contents(class_names=CLASS_NAMES, members=members, read=_read)


def write(data_dir: Path) -> Path:
    """Writes the data set that is damaged; returns the folder of its version."""
    preparation = Preparation(
        name=NAME, version=VERSION, title="", files=(), open=_open, fetches=True
    )
    return preparation.run(data_dir)


def read(data_dir: Path) -> list[Example]:
    """Reads every example, as training and evaluation do."""
    config = DataConfig(
        dataset=f"tfds:{NAME}",
        data_dir=str(data_dir),
        crop=32,
        scale_min=32,
        scale_max=32,
        validation_fraction=0.2,
    )
    sources = [open_source(config, one) for one in ("train", "validation", "test")]
    return [source[i] for source in sources for i in range(len(source))]


@functools.cache
def _intact(folder: Path) -> tuple[Path, list[tuple[bytes, int]]]:
    """Writes the set once for a process; returns its folder, and what it holds."""
    data_dir = Path(tempfile.mkdtemp(dir=folder))
    write(data_dir)
    return data_dir, [(one["image"], one["label"]) for one in read(data_dir)]


def judge(case: Case, folder: Path) -> Outcome:
    """Reads a data set one of whose files is damaged."""
    pattern, damage = KINDS[case.kind]
    rng = case.rng()
    intact, expected = _intact(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        data_dir = Path(shutil.copytree(intact, temporary, dirs_exist_ok=True))
        file = Path(rng.choice(sorted(map(str, data_dir.rglob(pattern)))))
        file.write_bytes(MUTATIONS[damage](rng, file.read_bytes()))
        examples, effort = measure(lambda: read(data_dir))
    if effort.excess:
        return wrong(f"{file.name}: {effort.excess}")
    if isinstance(examples, ValueError | OSError):
        names = str(data_dir) in str(examples)
        return RIGHT if names else wrong(f"{file.name}: no path in: {examples}"[:300])
    if isinstance(examples, Exception):
        return wrong(f"{file.name}: {type(examples).__name__}: {examples}"[:300])
    if [(one["image"], one["label"]) for one in examples] != expected:
        return lost(f"{file.name}: other pictures or labels, and nobody says so")
    return RIGHT


ATTACK = Attack(
    name="records",
    does="One file of a data set of ArrayRecord files, with its metadata, is damaged "
    "in the same ways; all its examples are read",
    right="refused by an error that names the file or its folder, or the same pictures "
    f"and labels; within {MAX_BYTES >> 20:,} MiB and {MAX_CPU_SECONDS:g} s of CPU",
    weight=1,
    kinds=KINDS,
    run=run_isolated,
    batch=50,
)

"""This module copies data sets from a bucket to this machine, once.

Training reads pictures in random order, each in a read of its own, which costs a round
trip to a bucket; and ArrayRecord's reader knows the files of disks alone.
"""

import functools
import os
import pathlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vgg_jax import buckets
from vgg_jax.config import DataConfig
from vgg_jax.console import progress_bar
from vgg_jax.data.prepare.writer import Preparation
from vgg_jax.distributed import on_first
from vgg_jax.files import is_in_bucket, lock, parse_path, replacing

MIRRORS = "buckets"  # the folder of the copies, below the cache
DOWNLOADS = 16  # at a time


class Object(NamedTuple):
    """A file in a bucket: its full name, its bytes, and when it was written."""

    name: str
    size: int
    written: float  # seconds since 1970


def local_data(config: DataConfig, part: str = "") -> pathlib.Path:
    """Returns the folder of a configuration's data on this machine.

    Raises:
        FileNotFoundError, OSError: see `local_folder`.
    """
    return local_folder(config.data_dir, part, config.cache_dir)


def local_prepared(config: DataConfig, preparation: Preparation) -> pathlib.Path:
    """Returns the folder on this machine with a data set of the prepare command.

    Raises:
        FileNotFoundError, OSError: see `local_folder`.
    """
    return local_data(config, str(preparation.directory(pathlib.Path())))


@functools.cache
def local_folder(data_dir: str, part: str, cache_dir: str) -> pathlib.Path:
    """Returns a local folder that has what `part` of `data_dir` has.

    It is `data_dir` itself unless that is in a bucket. What is in a bucket is copied to
    `cache_dir/buckets/BUCKET/...`; files that are there, of that size and time, stay.

    Args:
        data_dir: the folder of data sets.
        part: the folder below it that is needed; "" for all of it.
        cache_dir: the local folder for copies.

    Raises:
        FileNotFoundError: there is nothing in the bucket.
        OSError: the disk has too little space, or the bucket refuses.
    """
    source = parse_path(data_dir)
    if not is_in_bucket(source):
        return pathlib.Path(source)
    inside = os.fspath(source).removeprefix(buckets.SCHEME)
    local = pathlib.Path(cache_dir).expanduser() / MIRRORS / inside
    (local / part).mkdir(parents=True, exist_ok=True)

    def report(text: str) -> None:
        print(f"{source}: {text}", flush=True)

    with lock(local / ".lock", report):
        _copy(f"{inside}/{part}".rstrip("/"), local / part)
    return local


def _copy(folder: str, local: pathlib.Path) -> None:
    """Copies the files of a folder in a bucket that the local folder has not."""
    copies = [
        (entry, local / entry.name.removeprefix(f"{folder}/"))
        for entry in _list(folder)
    ]
    if not copies:
        raise FileNotFoundError(
            f"no data in {buckets.SCHEME}{folder}; prepare the data set on a disk and "
            "copy it there, see docs/buckets.md"
        )
    missing = [(entry, path) for entry, path in copies if not _is_same(entry, path)]
    needed = sum(entry.size for entry, _ in missing)
    free = shutil.disk_usage(local).free
    if free < needed:
        raise OSError(
            f"expected {needed / 1e9:,.1f} GB of free space in {local} for a copy of "
            f"{buckets.SCHEME}{folder}, found {free / 1e9:,.1f} GB; name another disk "
            "with data.cache_dir, or mount the bucket as a folder, see docs/buckets.md"
        )

    def download(copy: tuple[Object, pathlib.Path]) -> None:
        entry, path = copy
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            buckets.file_system().get_file(entry.name, os.fspath(partial))
            size = os.stat(partial).st_size
            if size != entry.size:
                raise OSError(
                    f"expected {entry.size:,} bytes of {buckets.SCHEME}{entry.name}, "
                    f"got {size:,}; give the same command again"
                )
            os.utime(partial, (entry.written, entry.written))

    if not missing:
        return
    name = on_first(f"copying {buckets.SCHEME}{folder}")
    with (
        progress_bar(name, len(missing), unit="files") as bar,
        ThreadPoolExecutor(DOWNLOADS) as threads,
    ):
        for _ in threads.map(download, missing):
            bar.update(1)


def _list(folder: str) -> Iterator[Object]:
    """Lists the files of a folder in a bucket and of the folders below it.

    Raises:
        OSError: a name leads out of the folder.
    """
    try:
        entries = buckets.file_system().find(folder, detail=True)
    except FileNotFoundError:
        return
    for name, entry in entries.items():
        if entry["type"] == "file" and not name.endswith("/"):
            if ".." in name.split("/"):
                raise OSError(
                    f"{buckets.SCHEME}{name} would be copied to another folder; remove "
                    "it from the bucket"
                )
            yield Object(name, entry["size"], entry["mtime"].timestamp())


def _is_same(entry: Object, path: pathlib.Path) -> bool:
    """Returns whether a local file is a copy of a bucket's: of its size and time."""
    if not path.is_file():
        return False
    found = path.stat()
    return found.st_size == entry.size and abs(found.st_mtime - entry.written) < 1

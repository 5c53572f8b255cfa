"""This module reads and writes files, on a disk and in a bucket.

A path is a local one or `gs://BUCKET/NAME`, an
`etils.epath.Path`; a local `pathlib.Path` will do as well. Files are written whole or
not at all, and read without running code.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
from etils import epath

from vgg_jax import buckets

Path = pathlib.Path | epath.Path

PARTIAL = ".partial"  # the end of the name of a file that is being written
DIGEST = "blake2b"  # the name, in a file, of the digest of all else that it holds


def parse_path(text: str | os.PathLike[str]) -> epath.Path:
    """Makes a path of its text, such as `runs/vgg16`, `~/runs` or `gs://BUCKET/vgg16`.

    Raises:
        ValueError: it is neither a local path nor one in a bucket of Google's.
        ImportError: it is in a bucket, and gcsfs, which reads those, is not installed.
    """
    text = os.fspath(text)
    url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text)
    if url and not re.match(rf"{buckets.SCHEME}[^/]", text):
        raise ValueError(
            f"expected a local path or {buckets.SCHEME}BUCKET/NAME, the only kind of "
            f"bucket that checkpoints can be kept in, got {text}"
        )
    if url:
        buckets.connect()
        return epath.Path(text)
    # A shell leaves it to the program in `--workdir=~/runs`.
    return epath.Path(text).expanduser()


def is_in_bucket(path: Path) -> bool:
    """Returns whether a path is in a bucket, not on a disk."""
    return os.fspath(path).startswith(buckets.SCHEME)


def resolve(path: Path) -> epath.Path:
    """Returns the absolute path, without symbolic links."""
    return epath.Path(path if is_in_bucket(path) else os.path.realpath(path))


def beside(folder: Path, name: str) -> epath.Path:
    """Returns the path that `name` has if it is relative to the parent of `folder`.

    An absolute path, or one with a user's home, stays what it is.
    """
    path = parse_path(name)
    if path.is_absolute():
        return path
    joined = pathlib.PurePosixPath(*folder.parts, "..", *path.parts)
    return epath.Path(os.path.normpath(joined))


def validate_writable(folder: Path) -> None:
    """Checks that files can be written into a folder, which may not exist yet.

    In a bucket the first write shows it.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    if is_in_bucket(folder):
        return
    parent = next(p for p in (folder, *resolve(folder).parents) if p.exists())
    if not parent.is_dir():
        raise _os_error(errno.ENOTDIR, parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _os_error(errno.EACCES, parent)


def _os_error(number: int, path: Path) -> OSError:
    """Makes the error that the operating system would raise later."""
    return OSError(number, os.strerror(number), str(path))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an operating system's error in the block the file's name if it has none.

    An error of an open file, such as that of a full disk, does not say which file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a local file to write, which takes the place of `path` when the block ends.

    A reader sees the old file or the whole new one. An error in the block leaves the
    old one.
    """
    if is_in_bucket(path):  # an object appears whole, when all of it is sent
        with tempfile.TemporaryDirectory() as folder:
            partial = pathlib.Path(folder, path.name)
            yield partial
            epath.Path(partial).copy(path, overwrite=True)
        return
    partial = pathlib.Path(f"{path}{PARTIAL}")
    with naming(path):
        yield partial
    os.replace(partial, path)


def text_digest(text: str) -> str:
    """Returns a digest of a text, 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Returns a digest of an array's type, shape and values, 32 hexadecimal digits."""
    digest = hashlib.blake2b(repr((array.dtype.str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all; an object gets its digest too."""
    if isinstance(value, Mapping):
        value = {**value, DIGEST: _json_digest(value)}
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads what a JSON file holds; a digest in it is compared and left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not what was written; the message names it.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if isinstance(value, dict) and DIGEST in value:
        digest = value.pop(DIGEST)
        if digest != _json_digest(value):
            raise ValueError(
                f"{path} is damaged: it has changed since it was written (if you "
                f"changed it, remove the line with {DIGEST!r})"
            )
    return value


def parse_metrics(text: bytes, number: int, path: Path) -> dict[str, float]:
    """Parses a line of a metrics.jsonl: names and numbers, among them step and epoch.

    Args:
        text: the line.
        number: of the line, from 1 on.
        path: the file.

    Raises:
        ValueError: it is anything else; the message names file and line.
    """
    try:
        metrics = json.loads(text)
        if not isinstance(metrics, dict) or not {"step", "epoch"} <= metrics.keys():
            raise ValueError("not the metrics of a step")
        for name, value in metrics.items():
            if not isinstance(value, int | float):
                raise ValueError(f"{name} is not a number")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged in line {number} ({error}); remove that line"
        ) from error
    return metrics


def _json_digest(value: Mapping[Any, Any]) -> str:
    """Returns the digest of an object of JSON, whatever the order of its names."""
    as_read = json.loads(json.dumps(value))
    return text_digest(json.dumps(as_read, sort_keys=True))


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays and their digests as npz, whole or not at all."""
    stored: dict[str, Any] = {n: np.asarray(array) for n, array in arrays.items()}
    digests = {name: array_digest(array) for name, array in stored.items()}
    stored[DIGEST] = np.array(json.dumps(digests))
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **stored)


def load_arrays(
    path: Path, names: Sequence[str], writer: str = "eval.py"
) -> dict[str, np.ndarray]:
    """Reads the arrays of these names; `writer` is the command that writes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or of another kind; the message names it.
    """
    try:
        with (
            path.open("rb") as file,
            np.load(cast(BinaryIO, file), allow_pickle=False) as stored,
        ):
            arrays = {name: stored[name] for name in names}
            digests = json.loads(str(stored[DIGEST])) if DIGEST in stored else {}
        for name in names if digests else ():
            if array_digest(arrays[name]) != digests[name]:
                raise ValueError(f"{name} has changed since it was written")
        return arrays
    except FileNotFoundError:
        raise
    except OSError as error:
        if buckets.explain(error):
            raise
        raise damaged(path, error, writer) from error
    except (
        *(AttributeError, EOFError, IndexError, KeyError, MemoryError),
        *(RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise damaged(path, error, writer) from error


def damaged(path: Path, error: Exception, writer: str = "eval.py") -> ValueError:
    """Makes the error to raise for a file that cannot be read, with the remedy."""
    return ValueError(
        f"{path} is damaged or of another version ({type(error).__name__}: {error}); "
        f"delete it and run {writer}, which writes it anew"
    )


class LineLog:
    """A text file that grows by lines.

    On a disk a line is there when `append` returns. A file in a bucket cannot grow: it
    is written anew with all lines, at most every `SECONDS`, by `flush` and at the end.

    Args:
        path: the file.
        lines: those that it begins with, in place of what is there.
    """

    SECONDS = 10.0

    def __init__(self, path: Path, lines: Iterable[str] = ()):
        self._path = path
        self._lines = list(lines)
        self._file: TextIO | None = None
        self._is_written = True
        if is_in_bucket(path):
            self._written = time.monotonic()
            return
        write_text(path, "".join(self._lines))
        self._file = open(path, "a")  # noqa: SIM115 it is closed at the end

    def append(self, line: str) -> None:
        """Adds a line, which ends in a newline."""
        if self._file is not None:
            with naming(self._path):
                self._file.write(line)
                self._file.flush()
            return
        self._lines.append(line)
        self._is_written = False
        if time.monotonic() - self._written > self.SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sees to it that all lines are in the file."""
        if not self._is_written:
            write_text(self._path, "".join(self._lines))
            self._written, self._is_written = time.monotonic(), True

    def close(self) -> None:
        """Writes what is not yet written."""
        self.flush()
        if self._file is not None:
            with naming(self._path):
                self._file.close()


@contextlib.contextmanager
def lock(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock file that one process of this machine has at a time.

    A process that dies gives it back. One that has to wait reports that it does.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that prepares it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# What helps against an operating system's error.
REMEDIES = {
    errno.EACCES: "give one that you may read and write",
    errno.EPERM: "give one that you may read and write",
    errno.EROFS: "give one on a disk that can be written to",
    errno.EEXIST: "that is a file; give a folder",
    errno.ENOTDIR: "that is a file; give a folder",
    errno.EISDIR: "that is a folder; give a file",
    errno.ENOENT: "give one that exists, or make its folder first",
    errno.ENOSPC: "free some space, or give one on another disk",
    errno.EDQUOT: "free some space, or give one on another disk",
}


def explain_error(error: Exception, paths: Sequence[tuple[str, Path]]) -> str:
    """Says in a line what went wrong, and what to do.

    Args:
        error: the error.
        paths: the paths that the user gave, each with the name of its flag.
    """
    if message := buckets.explain(error):
        return message
    if isinstance(error, OSError):
        return explain_os_error(error, paths)
    return str(error)


def explain_os_error(error: OSError, paths: Sequence[tuple[str, Path]]) -> str:
    """Says what an operating system refused, which flag gave the path, and a remedy.

    Args:
        error: an error of the system; or of this library, whose message says all.
        paths: the paths that the user gave, each with the name of its flag.
    """
    if error.errno is None:
        return str(error)
    message, flags = str(error.strerror), [flag for flag, _ in paths]
    if error.filename:
        name = os.fsdecode(error.filename).removesuffix(PARTIAL)
        message = f"{name}: {message}"
        flags = _flags_of(resolve(epath.Path(name)), paths)
    if error.errno in REMEDIES and flags:
        message += f"; {' or '.join(dict.fromkeys(flags))}: {REMEDIES[error.errno]}"
    return message


def _flags_of(place: Path, paths: Sequence[tuple[str, Path]]) -> list[str]:
    """Returns the flags whose path led to a place.

    They are those of the place itself, else of the nearest folder above it; where no
    flag gave one, those of paths below it.
    """
    absolute = [(flag, resolve(path.expanduser())) for flag, path in paths]
    for nearest in (place, *place.parents):
        if flags := [flag for flag, path in absolute if path == nearest]:
            return flags
    return [flag for flag, path in absolute if place in path.parents]

"""This module reads the records of ArrayRecord files, of which a data set has many.

A file that is read needs an open file descriptor, of which a process may have as many
as `ulimit -n` says: often 1024, while ImageNet alone has 1,024 files for training.
"""

import bisect
import collections
import contextlib
import itertools
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from vgg_jax.data.base import CorruptImage

# Descriptors that a process is allowed to have, where the system leaves it the choice.
MOST_DESCRIPTORS = 2**16
# Of a process's descriptors, one set may have one in so many: there may be two sets,
# and worker processes, checkpoints and devices need some too.
DESCRIPTORS_SHARE = 4
READER_OPTIONS = {
    "options": "readahead_buffer_size:0",  # records are read in random order
    "file_reader_buffer_size": 2**15,
}


class Shard(NamedTuple):
    """One file of a data set, and how many records it holds."""

    path: Path
    records: int


class Shards:
    """The records of the files of one split, numbered through; threads may share it.

    The files read last stay open, but for those that would be too many.
    """

    def __init__(self, shards: Sequence[Shard]):
        """Looks for the files, and opens none.

        Raises:
            FileNotFoundError: one of them is missing.
            ValueError: one has not even a byte for each record.
        """
        for path, records in shards:
            if not path.is_file():
                raise FileNotFoundError(
                    f"no file {path}, one of the {len(shards)} of its data set"
                )
            if records > path.stat().st_size:
                raise ValueError(
                    f"expected {records} records in {path}, found a file of "
                    f"{path.stat().st_size} bytes"
                )
        self._shards = shards
        self._ends = list(itertools.accumulate(shard.records for shard in shards))
        self._most_open = max(1, allow_descriptors() // DESCRIPTORS_SHARE)
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """Reads a record.

        Raises:
            CorruptImage: the file is damaged, as a whole or where the record lies.
            OSError: the file cannot be opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {index}")
        number = bisect.bisect_right(self._ends, index)
        path, count = self._shards[number]
        position = index - self._ends[number] + count
        reader = self._reader(number)
        try:
            [record] = reader.read([position])
        except RuntimeError as error:
            _raise_if_gone(path)
            raise CorruptImage(
                f"cannot read record {position} of {path}: {error}"
            ) from error
        assert isinstance(record, bytes)
        return record

    def read_all(self) -> list[bytes]:
        """Reads all records at once, a hundred times as fast as one by one.

        Raises:
            CorruptImage: a file is damaged.
            OSError: a file cannot be opened.
        """
        records: list[bytes] = []
        for number, (path, count) in enumerate(self._shards):
            reader = self._reader(number)
            try:
                records += reader.read(0, count)
            except RuntimeError as error:
                raise CorruptImage(f"{path} is damaged: {error}") from error
        return records

    def _reader(self, number: int) -> Any:
        """Returns the open reader of a file; opens it and closes another if need be."""
        with self._lock:
            if number in self._readers:
                self._readers.move_to_end(number)
                return self._readers[number]
        opened = _open(self._shards[number])
        with self._lock:
            reader = self._readers.setdefault(number, opened)
            while len(self._readers) > self._most_open:
                # Its file is closed when the last thread that reads it drops it.
                self._readers.popitem(last=False)
        return reader


def allow_descriptors() -> int:
    """Lets this process have as many descriptors as it may; returns their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    most = MOST_DESCRIPTORS if unlimited else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    # macOS says that there is no limit, and has one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def _open(shard: Shard) -> Any:
    """Opens a file.

    Raises:
        CorruptImage: it is truncated or damaged at its end, where its index lies.
        OSError: it cannot be opened.
    """
    reader = ArrayRecordReader(str(shard.path), **READER_OPTIONS)
    count = reader.num_records()
    if count == shard.records:
        return reader
    _raise_if_gone(shard.path)
    raise CorruptImage(
        f"{shard.path} is damaged: expected {shard.records} records, found {count}; "
        "get the file again"
    )


def _raise_if_gone(path: Path) -> None:
    """Lets the system say why a file cannot be opened, if it cannot."""
    with open(path, "rb"):
        pass

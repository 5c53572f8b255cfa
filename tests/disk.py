"""A disk that is full."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def file_sizes_up_to(count: int) -> Iterator[None]:
    """No file may grow past `count` bytes, as on a disk that is full.

    Not a fixture: pytest reports before a fixture ends, perhaps into a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

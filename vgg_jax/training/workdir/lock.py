"""This module lets one training at a time write into the folder of a run."""

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from typing import TextIO

from etils.epath import Path

from vgg_jax.buckets import Lease
from vgg_jax.distributed import gather, is_first, several, warn
from vgg_jax.files import is_in_bucket

LOCK = "lock"  # the file that says which process trains in a workdir
TOKEN = "hosts"  # a file that is there while several hosts look whether they share it

# A start that only looks at a lock holds it for a moment, which an owner waits out.
ATTEMPTS, SECONDS_BETWEEN = 5, 0.05

# For so long a file server may hide from a host what another one has written.
SECONDS_UNTIL_SEEN = 90


class WorkdirHeld(RuntimeError):
    """Another training writes into the folder."""


class WorkdirLost(RuntimeError):
    """The folder of a run was removed, or given to another run, while it trained."""


class WorkdirLock:
    """Holds the folder of a run inside `with`; of several hosts the first one does.

    The file `WORKDIR/lock` names the process. The operating system's lock on it ends
    with the process, however that ends, so that the next start takes the folder over.
    In a bucket it is a `buckets.Lease`.

    Args:
        workdir: the folder, which is made if it is not there.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._path = workdir / LOCK
        self._file: TextIO | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock.

        Raises:
            WorkdirHeld: another training has it; the message names the process.
            ValueError: other hosts have another folder under the same name.
            OSError: the folder cannot be made or written to.
        """
        try:
            self._take()
            _validate_shared(self._workdir)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _take(self) -> None:
        """Takes the lock if this is the first host."""
        if is_first():
            self._workdir.mkdir(parents=True, exist_ok=True)
        if is_first() and is_in_bucket(self._workdir):
            lease = Lease(self._path)
            if owner := lease.acquire():
                raise _held(owner, self._workdir)
            self._lease = lease
        elif is_first():
            self._file = _acquire(self._workdir)
            process = {"pid": os.getpid(), "host": socket.gethostname()}
            self._file.truncate(0)
            self._file.write(json.dumps(process) + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        if self._file is not None:
            if _is_at(self._file, self._path):
                self._path.unlink()
            self._file.close()
            self._file = None

    def confirm(self) -> None:
        """Checks that the folder is still there and this run's, before writing to it.

        Raises:
            WorkdirLost: it is not; the message names it.
        """
        if self._lease is not None:
            is_held = self._lease.is_held()
        else:
            is_held = self._file is None or _is_at(self._file, self._path)
        if is_held:
            return
        state = "is gone" if not self._workdir.exists() else "has lost its file 'lock'"
        raise WorkdirLost(
            f"the run's folder {self._workdir} {state}, so nothing more is written "
            "there. Bring it back and give the same command, which goes on from the "
            "last checkpoint in it"
        )


def refuse_held(workdir: Path) -> None:
    """Checks that no other training writes into a folder, without taking it.

    Raises:
        WorkdirHeld: another one does; the message names the process.
    """
    if not is_first() or not (workdir / LOCK).exists():
        return
    if not is_in_bucket(workdir):
        _acquire(workdir).close()
    elif owner := Lease(workdir / LOCK).owner():
        raise _held(owner, workdir)


def _validate_shared(workdir: Path) -> None:
    """Checks that all hosts see what the first one writes into a folder.

    That is a file of its own, for some file servers refuse to read one that is locked.

    Raises:
        ValueError: some do not, so that each would write into a folder of its own.
    """
    if not several():
        return
    path = workdir / TOKEN
    token = gather(uuid.uuid4().hex)[0]
    if is_first():
        path.write_text(token)
    deadline = time.monotonic() + SECONDS_UNTIL_SEEN
    while not (is_seen := _holds(path, token)) and time.monotonic() < deadline:
        time.sleep(10 * SECONDS_BETWEEN)
    blind = [str(host) for host, sees in enumerate(gather(is_seen)) if not sees]
    if is_first():
        path.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"expected one folder {workdir} that all hosts share; what host 0 wrote "
            f"there did not come to host {', '.join(blind)} within "
            f"{SECONDS_UNTIL_SEEN} s. Give a --workdir on a shared disk, or in a "
            "bucket (gs://BUCKET/RUN)"
        )


def _holds(path: Path, text: str) -> bool:
    """Returns whether this host can read a text in a file."""
    try:
        return path.read_text() == text
    except OSError:
        return False


def _acquire(workdir: Path) -> TextIO:
    """Opens and locks the file of a folder."""
    path, owner = workdir / LOCK, "another process"
    for _ in range(ATTEMPTS):
        file = open(path, "a+")  # noqa: SIM115 it is open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(file)
            file.close()
            time.sleep(SECONDS_BETWEEN)
            continue
        except OSError as error:
            warn(
                f"{path} cannot be locked ({error.strerror}): see to it that no other "
                "training uses the same --workdir"
            )
        if _is_at(file, path):  # its owner removes it at the end
            return file
        file.close()
    raise _held(owner, workdir)


def _held(owner: str, workdir: Path) -> WorkdirHeld:
    """Makes the error to raise where another process has a folder."""
    return WorkdirHeld(
        f"{owner} trains in {workdir}: stop it first, or give another --workdir"
    )


def _owner(file: TextIO) -> str:
    """Names the process that a lock file belongs to."""
    file.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        owner = json.loads(file.read())
        return f"process {owner['pid']} on host {owner['host']}"
    return "another process"


def _is_at(file: TextIO, path: Path) -> bool:
    """Returns whether an open file is the one that has a path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

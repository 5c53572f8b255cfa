"""This module has what buckets of Google Cloud Storage have in place of a disk's ways.

A bucket has no locks, and other errors than an operating system. gcsfs talks to it; it
asks again for half a minute where a bucket is busy or does not answer.
"""

import contextlib
import datetime
import email.utils
import importlib.util
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
from typing import Any

from etils import epath

SCHEME = "gs://"

# What TensorStore says of a bucket that does not answer.
UNANSWERED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")

# A lease that is not renewed for so many seconds is over, as its process must be dead.
LEASE_SECONDS = 60.0
RENEWALS = 4  # in that time


def connect() -> None:
    """Prepares this process for buckets; may be called again.

    Raises:
        ImportError: gcsfs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise ImportError(
            f"{SCHEME} needs gcsfs, which is not installed; type "
            "`pip install -r requirements-gcs.txt`"
        )
    import fsspec

    # What lies in a folder is asked anew every time: other programs write there too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # It logs tracebacks of errors that it raises too.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)


def file_system() -> Any:
    """Returns the file system of all buckets, the one that `etils.epath` uses."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def errors() -> tuple[type[Exception], ...]:
    """Returns the kinds of errors of buckets; none where no bucket was used."""
    if "gcsfs" not in sys.modules:
        return ()
    import aiohttp
    import google.api_core.exceptions
    import google.auth.exceptions
    from gcsfs.retry import ChecksumError, HttpError, NonRetryableError

    return (
        *(HttpError, ChecksumError, NonRetryableError, aiohttp.ClientError),
        google.api_core.exceptions.GoogleAPIError,
        google.auth.exceptions.GoogleAuthError,
    )


def explain(error: BaseException) -> str | None:
    """Says in a line what a bucket refused, and what to do; None for other errors."""
    words = str(error)
    # TensorStore raises one kind of error, whose first word tells more.
    store = re.match(r"([A-Z_]+): [^\[]*?(gs://[^\s\"\[]+)", words)
    code, place = store.groups() if store else ("", None)
    # Not the message alone: other errors quote one.
    if isinstance(error, OSError) and error.errno is None:
        place = _place(words)
        code = "PERMISSION_DENIED" if words.startswith("Forbidden") else ""
        if place and isinstance(error, FileNotFoundError):
            return f"{place} is not there; is there such a bucket?"
    if place and code == "PERMISSION_DENIED":
        return (
            f"{place}: permission denied; give this machine's account the role "
            "Storage Object User (roles/storage.objectUser) on the bucket"
        )
    if code not in UNANSWERED and not isinstance(error, errors()):
        return None
    reason = " ".join(words.partition("[")[0].split()) or type(error).__name__
    if re.search(r"\b401\b", reason) or "auth" in type(error).__module__:
        return (
            f"Google Cloud does not know this account ({reason}); type `gcloud auth "
            "application-default login`, or give the machine a service account"
        )
    return (
        f"the bucket does not answer ({reason}), though it was asked again and again; "
        "the same command goes on later"
    )


def _place(message: str) -> str | None:
    """Finds the object that a message of gcsfs is about: gs://BUCKET/NAME."""
    match = re.match(
        r"(?:Forbidden: )?(?:http\S*/v1/)?b/([^/\s]+)/o\b(?:[/?](?:name=)?([^?&\s]*))?",
        message,
    )
    if match is None:
        return None
    name = urllib.parse.unquote(match[2] or "")
    return f"{SCHEME}{match[1]}" + (f"/{name}" if name else "")


class EventFile:
    """A file of TensorBoard in a bucket, which is sent whole at every `flush`.

    TensorBoard shows what is in metrics.jsonl too, so that a bucket that refuses it
    stops no run: it is a warning.
    """

    def __init__(self, path: str):
        self._path = path
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        """Adds bytes to the file."""
        self._data += data

    def flush(self) -> None:
        """Sends the file as it is now."""
        refusals: tuple[type[Exception], ...] = (OSError, *errors())
        try:
            epath.Path(self._path).write_bytes(bytes(self._data))
        except refusals as error:
            reason = explain(error) or error
            print(f"warning: {self._path} is not written: {reason}", file=sys.stderr)

    def close(self) -> None:
        """Sends the whole file."""
        self.flush()


class EventFiles:
    """Opens `EventFile`s, in the way that tensorboardX wants it."""

    def open(self, path: str) -> EventFile:
        """Opens a file to write."""
        return EventFile(path)

    def directory_check(self, path: str) -> None:
        """Does nothing, for a bucket has no folders to be made."""


class Lease:
    """The right to something that one process has at a time, kept as an object.

    A thread renews it. It is over when it is released, when its process is dead, or
    `LEASE_SECONDS` after the last renewal, by the clock of the store.

    Args:
        path: the object, such as gs://BUCKET/RUN/lock.
    """

    def __init__(self, path: str | os.PathLike[str]):
        bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
        self._place = (bucket, name)
        self._path = os.fspath(path)
        self._store = file_system()
        self._generation: str | None = None
        self._renewed = 0.0
        self._has_said = False
        self._is_over = threading.Event()

    def acquire(self) -> str | None:
        """Takes the lease; returns the process that has it, where another one does."""
        while True:
            # Of several processes that ask at the same time the store serves one.
            with contextlib.suppress(FileExistsError):
                self._store.pipe_file(
                    self._path, json.dumps(_this_process()).encode(), mode="create"
                )
                self._generation = self._metadata()[0]["generation"]
                self._renewed = time.monotonic()
                break
            if (other := self.owner()) is not None:
                return other
        threading.Thread(target=self._keep_renewing, daemon=True).start()
        return None

    def owner(self) -> str | None:
        """Names the process that has the lease; a lease that is over is taken away.

        A process of another machine, which may be dead, shows that it is not by the
        next renewal; this waits for that, or for the end of the lease.
        """
        first_state = None
        while True:
            try:
                metadata, now = self._metadata()
                text = self._store.cat_file(self._path)
            except FileNotFoundError:
                return None
            try:
                owner = json.loads(text)
                name = f"process {owner['pid']} on host {owner['host']}"
            except (ValueError, KeyError, TypeError):
                owner, name = {}, "another process"
            is_alive = _is_alive(owner)
            renewed = datetime.datetime.fromisoformat(metadata["updated"])
            if is_alive is False or (now - renewed).total_seconds() > LEASE_SECONDS:
                self._delete(metadata["generation"])
                return None
            state = metadata["generation"], metadata["metageneration"]
            first_state = first_state or state
            if is_alive or state != first_state:
                return name
            if state == first_state and not self._has_said:
                print(f"waiting for a sign of {name}", file=sys.stderr, flush=True)
                self._has_said = True
            time.sleep(LEASE_SECONDS / RENEWALS / 5)

    def is_held(self) -> bool:
        """Returns whether this process still has the lease."""
        if self._generation is None:
            return False
        if time.monotonic() - self._renewed > LEASE_SECONDS:  # after an outage
            self._renew()
        return not self._is_over.is_set()

    def release(self) -> None:
        """Gives the lease back, if this process still has it."""
        if self.is_held():
            self._is_over.set()
            self._delete(self._generation)

    def _metadata(self) -> tuple[dict[str, Any], datetime.datetime]:
        """Reads what the store knows of the object, and its clock."""
        headers, content = self._store.call("GET", "b/{}/o/{}", *self._place)
        return json.loads(content), email.utils.parsedate_to_datetime(headers["Date"])

    def _delete(self, generation: str | None) -> None:
        """Deletes the object unless another process has written it anew."""
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self._store.call(
                "DELETE", "b/{}/o/{}", *self._place, ifGenerationMatch=generation
            )

    def _keep_renewing(self) -> None:
        """Renews the lease until it is over."""
        while not self._is_over.wait(LEASE_SECONDS / RENEWALS):
            with contextlib.suppress(OSError, *errors()):  # tried again
                self._renew()

    def _renew(self) -> None:
        """Renews the lease, unless another process has taken it."""
        try:
            self._store.call(
                "PATCH",
                "b/{}/o/{}",
                *self._place,
                ifGenerationMatch=self._generation,
                json={"metadata": {"renewed": str(time.time())}},
            )
            self._renewed = time.monotonic()
        except (FileNotFoundError, FileExistsError):
            self._is_over.set()


def _this_process() -> dict[str, Any]:
    """Describes this process, whose number is its own in its namespace alone."""
    namespace = "/proc/self/ns/pid"
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "namespace": os.readlink(namespace) if os.path.exists(namespace) else "",
    }


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Returns whether a process is running; None for one of another machine."""
    if owner | {"pid": os.getpid()} != _this_process():
        return None
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

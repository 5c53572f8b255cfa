"""Ends this process with one line when another host is lost.

JAX notices a lost host too, but it aborts with a stack trace and an exit code that a
scheduler cannot tell from a crash. Here every host writes a number into the store of
the coordinator (host 0) every few seconds, and reads those of the others.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import threading
import time
from typing import Any, NoReturn

import jax

from vgg_jax.hosts.ending import end_process

# The exit code that asks a scheduler to start the same command again (EX_TEMPFAIL).
RETRY = 75

# A host that is silent for so long is taken for dead, and all the others end.
SECONDS = 30
INTERVAL = 3  # seconds from beat to beat

KEY = "vgg_jax/heartbeat"
_word = threading.Lock()  # is never given back

GONE = "gone"  # the last beat of a host that ends before the others


def lost(reason: str) -> str:
    """Returns the line that says that another host is lost."""
    return (
        f"lost another host ({reason}); its own output says why. The same command on "
        "all of them goes on from the last checkpoint"
    )


def end(host: int | str, message: str) -> NoReturn:
    """Ends this process from any thread: one line on stderr, exit code `RETRY`.

    Several threads may notice a loss at the same time; the first one has the word.
    """
    if not _word.acquire(blocking=False):
        time.sleep(1)
        os._exit(RETRY)
    end_process(RETRY, f"host {host}: error: {message}")


class Heartbeat:
    """Tells the other hosts that this one lives, and ends it when one of them does not.

    Args:
        client: JAX's client of the coordinator's store.
        host: the number of this host.
        hosts: how many there are.
        address: HOST:PORT of the coordinator.
    """

    def __init__(self, client: Any, host: int, hosts: int, address: str):
        self.client = client
        self.host = host
        self.address = address
        now = time.monotonic()
        self._answered = now  # when the coordinator last did
        self._last = {str(other): ("", now) for other in range(hosts)}
        self._ending = threading.Event()
        self._silent = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Beats and watches in threads of their own."""
        self._beating.start()
        threading.Thread(target=self._watch, daemon=True).start()
        self.end_at_abort()

    def stop(self) -> None:
        """Ends the watch over the others; this host goes on to tell that it lives."""
        self._ending.set()

    def silence(self) -> None:
        """Ends the beats too, and with them all that this object does.

        To be called before Python ends: it ends a thread in the middle of C++ by an
        exception that C++ answers with an abort.
        """
        self.stop()
        self._silent.set()
        self._beating.join(2 * INTERVAL)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def leave(self) -> None:
        """Tells the other hosts that this one ends now; they then end too.

        The coordinator lives until they have had the time to read that.
        """
        self.stop()
        own = f"{KEY}/{self.host}"
        tell = threading.Thread(
            target=self.client.key_value_set,
            args=(own, GONE),
            kwargs={"allow_overwrite": True},
            daemon=True,
        )
        tell.start()
        tell.join(timeout=2)
        if self.host == 0:
            time.sleep(INTERVAL + 2)

    def _beat(self) -> None:
        """Writes this host's number and reads the others'."""
        for beat in itertools.count():
            own = f"{KEY}/{self.host}"
            # Without an answer `_watch` ends the process once that has lasted too long.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.client.key_value_set(own, str(beat), allow_overwrite=True)
                for key, value in self.client.key_value_dir_get(KEY):
                    other = key.rpartition("/")[2]
                    if self._last[other][0] != value:
                        self._last[other] = (value, time.monotonic())
                self._answered = time.monotonic()
            if self._silent.wait(INTERVAL):
                return

    def _watch(self) -> None:
        """Ends this process once another host is lost."""
        while not self._ending.wait(0.2):
            if (reason := self.loss(time.monotonic(), SECONDS)) is not None:
                end(self.host, lost(reason))

    def loss(self, now: float, seconds: float) -> str | None:
        """Says which host is lost at a time of `time.monotonic`; None if none is.

        One is lost that is silent for more than so many seconds.
        """
        if now - self._answered > seconds:
            return f"host 0 does not answer for {seconds} s"
        for other, (value, when) in self._last.items():
            if value == GONE:
                return f"host {other} ended"
            if now - when > seconds:
                return f"host {other} is silent for {seconds} s"
        return None

    def end_at_abort(self) -> None:
        """Ends JAX's abort at the loss of a host as every loss ends.

        JAX aborts at once when the connection to the coordinator breaks, and on host 0
        when its own watch comes first. Any other abort goes on as one.
        """

        def ended(_: int) -> None:
            if not _is_reachable(self.address):
                end(self.host, lost("host 0 is gone"))
            if (reason := self.loss(time.monotonic(), 3 * INTERVAL)) is not None:
                end(self.host, lost(reason))

        # Held for as long as the process lives, for C calls it.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(ended)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))


def _is_reachable(address: str) -> bool:
    """Returns whether anybody answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False

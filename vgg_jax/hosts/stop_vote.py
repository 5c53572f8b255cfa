"""Has all hosts stop at the same point, whichever of them is told to.

A host that stopped alone would leave the others waiting in the middle of a step. JAX
has such a vote too, but takes SIGTERM alone for a request, and Orbax counts in it too.
"""

import contextlib
import threading
from typing import Any

import jax

KEY = "vgg_jax/stop"
POLL = 2_000  # milliseconds to wait for a number before it is asked for again


class StopVote:
    """Counts the points at which a host could stop, and finds one for all.

    A host that is to stop writes a request into the coordinator's store, for which a
    thread of every host waits. It holds its own host at the next point, writes how many
    points that has passed, and reads those of the others. The point after the largest
    of these numbers is one that no host has passed.

    Args:
        client: JAX's client of the coordinator's store.
        host: the number of this host.
        hosts: how many there are.
    """

    def __init__(self, client: Any, host: int, hosts: int):
        self.client = client
        self.host = host
        self.hosts = hosts
        self._changed = threading.Condition()
        self._passed = 0
        self._is_voting = False
        self._last: int | None = None  # the point to stop at
        self._signal: int | None = None
        self._is_over = False
        self._voting = threading.Thread(target=self._vote, daemon=True)

    def start(self) -> None:
        """Waits for a request, in a thread."""
        self._voting.start()

    def end(self) -> None:
        """Ends the thread, as `Heartbeat.silence` does and for its reason."""
        self._is_over = True
        self._voting.join(2 * POLL / 1000)

    def request(self, signal: int) -> None:
        """Asks all hosts to stop for this signal; the first request counts."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was the first
            self.client.key_value_set(f"{KEY}/signal", str(signal))

    def pass_point(self) -> int | None:
        """Returns the signal to stop here for, or None; all must call it as often."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_voting)
            self._passed += 1
            return self._signal if self._passed == self._last else None

    def _vote(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the process ends
            signal = self._read("signal")
            with self._changed:
                self._is_voting = True
                passed = self._passed
            self.client.key_value_set(f"{KEY}/passed/{self.host}", str(passed))
            largest = max(self._read(f"passed/{host}") for host in range(self.hosts))
            with self._changed:
                self._signal, self._last = signal, largest + 1
                self._is_voting = False
                self._changed.notify_all()

    def _read(self, name: str) -> int:
        """Waits until a number is in the store, or until `end` is called.

        Raises:
            JaxRuntimeError: `end` was called, or the coordinator is gone.
        """
        while True:
            try:
                return int(self.client.blocking_key_value_get(f"{KEY}/{name}", POLL))
            except jax.errors.JaxRuntimeError as error:
                if self._is_over or "DEADLINE_EXCEEDED" not in str(error):
                    raise

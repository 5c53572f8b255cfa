"""This module takes Ctrl-C and SIGTERM: at once, or as a request to stop soon."""

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar

from vgg_jax import distributed
from vgg_jax.hosts.ending import end_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED = 128  # and the signal's number: the exit code of a process that it stopped

# What a process that is to stop at once has for tidying up. Python acts on a signal
# only when JAX or a file system gives the main thread back, which can take minutes.
GRACE_SECONDS = 5


class StopRequested(Exception):
    """Raised by `Interrupt.stop_if_requested`; `signal` is the signal that came."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class Interrupt:
    """Takes Ctrl-C and SIGTERM inside `with`; both then stop the process at once.

    After `postpone` the first signal is kept for `requested`; a further SIGTERM, which
    launchers like to send twice, changes nothing, and a further Ctrl-C stops at once.
    To stop at once is to raise KeyboardInterrupt, whose argument is the signal.

    Blocks may be nested; the inner one decides. Outside of the main thread, where
    Python lets nobody handle signals, nothing is taken.

    Args:
        ends_process: whether the process is to end `GRACE_SECONDS` after it was stopped
            at once, whatever its main thread is busy with; for the outer block of one
            that belongs to the command alone.
    """

    _blocks: ClassVar[list["Interrupt"]] = []  # those that are open, the inner one last

    def __init__(self, *, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self.signal: signal.Signals | None = None
        self._may_wait = False
        self._told_hosts = False
        self._stops = False  # of the outer block: whether KeyboardInterrupt was raised,
        self._caught = 0  # and the signals that the main thread has seen
        self._handlers: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._handlers = {s: signal.signal(s, self._catch) for s in SIGNALS}
        if self._ends_process:
            self._start_watch()
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._raise_again
        self._blocks.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._handlers:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        sys.unraisablehook = self._hook
        self._blocks.remove(self)
        if self._ends_process:
            if not isinstance(error, KeyboardInterrupt):  # else the watch goes on
                self._ended.set()
            signal.set_wakeup_fd(self._wakeup_before)
            self._sender.close()

    def postpone(self) -> None:
        """From now on there is work to save: the first signal waits for `requested`."""
        self._may_wait = True

    def requested(self) -> signal.Signals | None:
        """Returns the signal to stop for, or None.

        On several hosts all must ask equally often, and all get the signal at the same
        time, whichever of them it came to.
        """
        if not distributed.several():
            return self.signal
        if self.signal is not None and not self._told_hosts:
            distributed.stop_all(self.signal)
            self._told_hosts = True
        number = distributed.pass_stop_point()
        return None if number is None else signal.Signals(number)

    def stop_if_requested(self) -> None:
        """Raises StopRequested where `requested` returns a signal."""
        if (number := self.requested()) is not None:
            raise StopRequested(number)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        outer = self._blocks[0]
        outer._caught += 1
        if self._may_wait and (number == signal.SIGTERM or self.signal is None):
            self.signal = self.signal or signal.Signals(number)
            if distributed.is_first():
                # `print` cannot be called within itself, and nobody may read it.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nstopping after this step; Ctrl-C stops at once\n")
        elif not outer._stops:  # else it is tidying up, and the watch ends that
            outer._stops = True
            raise KeyboardInterrupt(signal.Signals(number))

    def _raise_again(self, lost: Any) -> None:
        """Sends a signal once more whose KeyboardInterrupt was lost.

        Python drops what is raised within a callback, such as JAX's of each garbage
        collection, or within `__del__`, and tells only `sys.unraisablehook`.
        """
        first = self._blocks[0]
        if isinstance(lost.exc_value, KeyboardInterrupt) and first._stops:
            first._stops = False
            # Later, for what is raised within this hook is lost as well.
            resend = threading.Timer(
                0.05, os.kill, (os.getpid(), lost.exc_value.args[0])
            )
            resend.start()
        else:
            self._hook(lost)

    def _start_watch(self) -> None:
        """Has a thread told of each signal, whatever the main thread is busy with."""
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(
            self._sender.fileno(), warn_on_full_buffer=False
        )
        threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()

    def _watch(self, receiver: socket.socket) -> None:
        """Ends the process where the main thread does not."""
        requests: set[int] = set()  # the blocks that a request has come to
        signals = 0
        with receiver:
            while number := receiver.recv(1):
                if number[0] not in SIGNALS:
                    continue
                signals += 1
                block = (self._blocks or [self])[-1]  # none is open after the end
                waits = number[0] == signal.SIGTERM or id(block) not in requests
                if block._may_wait and waits:
                    requests.add(id(block))
                    continue
                has_ended = self._ended.wait(GRACE_SECONDS)
                if not has_ended and (self._stops or self._caught < signals):
                    end_process(STOPPED + number[0], "stopped")

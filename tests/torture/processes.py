"""Commands as a user starts them: processes with their output, signals and end."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

POLL_SECONDS = 0.005
FAILURES = range(1, 126)  # exit codes of an error; 126 and 127 are a shell's
PATIENCE = 180  # seconds until a command that should end counts as hung


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: the exit code as a shell gives it, 128 + N for death by signal N; None for
            a command that did not end in time.
        output: all that it printed, stderr too.
        seconds: how long it ran.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        lines = self.output.strip().splitlines()
        return lines[-1][:300] if lines else "no output"

    @property
    def errors(self) -> list[str]:
        """The lines that tell an error."""
        return re.findall(r"^(?:host \d+: )?error: .*$", self.output, re.MULTILINE)

    def fault(self, codes: Sequence[int]) -> str | None:
        """Says what is wrong with an end that should have one of these exit codes.

        A traceback always is; a code that means an error needs a line `error:`.
        """
        if self.code is None:
            return f"no end within {self.seconds:.0f} s; last line: {self.last_line}"
        if "Traceback (most recent call last)" in self.output:
            return f"a traceback, exit code {self.code}: {self.last_line}"
        if self.code not in codes:
            expected = " or ".join(map(str, codes))
            if len(codes) > 5:
                expected = f"one of {min(codes)} to {max(codes)}"
            return f"exit code {self.code} in place of {expected}: {self.last_line}"
        if 0 < self.code < 128 and not self.errors:
            return f"exit code {self.code} without a line `error:`: {self.last_line}"
        return None


class Started:
    """A command that runs, in a session of its own; all that it prints is in a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        cwd: Path,
    ):
        self._log = log
        self._began = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_session()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        """Whether the process that was started has ended."""
        return self._process.poll() is not None

    def wait_until(
        self, condition: Callable[[], bool], seconds: float = PATIENCE
    ) -> bool:
        """Waits for a condition; returns False if the process ends before it."""
        end = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < end:
            if condition():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Sends a signal, to the process or to all of its group, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if to_group:
                os.killpg(self._process.pid, number)
            elif not self.has_ended:
                self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end; a process that does not end in time is killed."""
        code: int | None
        try:
            code = self._process.wait(seconds)
            code = 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            self.kill_session()
            code = None
        return Ended(code, self.output, time.monotonic() - self._began)

    def left_over(self, seconds: float) -> list[int]:
        """Lists the processes of its session that still live after so long."""
        end = time.monotonic() + seconds
        while (pids := self._session()) and time.monotonic() < end:
            time.sleep(10 * POLL_SECONDS)
        return pids

    def kill_session(self) -> None:
        """Kills all that was started and still lives."""
        for pid in self._session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _session(self) -> list[int]:
        """Lists the living processes of the session."""
        members = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # The name, in parentheses, can have spaces and parentheses itself.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._process.pid and fields[0] not in "ZX":
                    members.append(int(folder.name))
        return members


class OutOfTime(BaseException):
    """Raised by the timer; no `except Exception` of the library catches it."""


@contextlib.contextmanager
def timer(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block after so many seconds."""

    def raise_out_of_time(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, raise_out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class MainThreadOutput(io.TextIOBase):
    """Passes on what the main thread writes.

    After hundreds of damaged checkpoints, threads of libraries complain of event loops
    that are closed by now; in a process of its own a command ends before that.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or drops it."""
        if threading.current_thread() is threading.main_thread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what waits to be written."""
        self._stream.flush()


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Drops what libraries log past `sys.stderr`, for hundreds of damaged files."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def call(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    seconds: float = PATIENCE,
) -> Ended:
    """Runs the `main` of a command in this process, which is quicker.

    An exception that leaves it is in the output as a traceback, as Python prints it.
    """
    printed = io.StringIO()
    began = time.monotonic()
    code: int | None = 1
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(MainThreadOutput(printed)),
        _quiet_libraries(),
    ):
        try:
            with timer(seconds):
                code = main(arguments)
        except OutOfTime:
            code = None
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            traceback.print_exc()
    return Ended(code, printed.getvalue(), time.monotonic() - began)

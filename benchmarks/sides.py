"""Runs the processes that are compared, and has them take turns."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Unanswered(RuntimeError):
    """A process had an error, stopped, or was ended, in place of an answer."""


class OutOfTime(Unanswered):
    """A process was ended because its time was up."""


class Side:
    """One of the processes, which measures when it is told to.

    It starts at once, and makes nothing before the first request.

    Args:
        python: the interpreter that runs it.
        module: what it runs.
        arguments: the keywords of the module's `open_parts`.
        environment: variables that it has besides those of this process.
    """

    def __init__(
        self,
        python: str,
        module: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ):
        self.module = module
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 see `close`
        self._command = [python, "-m", module, json.dumps(arguments)]
        self._environment = {**os.environ, **(environment or {})}
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that what it started can be ended with it
        )

    def start_if_ended(self) -> None:
        """Starts the process anew where it has ended."""
        if self._process.poll() is not None:
            self._end()
            self._process = self._start()

    def ask(self, request: str, seconds: float | None = None) -> Any:
        """Returns the answer to a request, such as the seconds of a step of a part.

        Args:
            request: the name of a part.
            seconds: for how long it may take; the process is ended then.

        Raises:
            OutOfTime: it took longer.
            Unanswered: the process had an error or stopped; the message has the reason.
        """
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self.kill()

        with contextlib.ExitStack() as stack:
            if seconds is not None:
                timer = threading.Timer(max(0.0, seconds), end)
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
            line = self._exchange(json.dumps(request))
        if not line:
            if is_late.is_set():
                raise OutOfTime("its time was up")
            code = self._process.wait()
            raise Unanswered(f"stopped with code {code}: {self._last_error()}")
        reply = json.loads(line)
        if "error" in reply:
            raise Unanswered(reply["error"])
        return reply["answer"]

    def _exchange(self, line: str) -> str:
        """Sends a line and returns the one that comes back; "" from a dead process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def _last_error(self) -> str:
        """Returns the last line that the process wrote to stderr."""
        return next(reversed(self.errors().split("\n")), "")

    def errors(self, characters: int = 4000) -> str:
        """Returns the end of what the process wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read().rstrip()[-characters:]

    def kill(self) -> None:
        """Ends the process, with all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process, which has a few seconds to do so by itself."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=5)
        self.kill()
        self._process.wait()


@contextlib.contextmanager
def closing(sides: Sequence[Side]) -> Iterator[Sequence[Side]]:
    """Ends the processes after the block."""
    try:
        yield sides
    finally:
        for side in sides:
            side.close()


Program = tuple[str, str, Mapping[str, Any]]  # the first three arguments of `Side`


def measure_launches(
    programs: Sequence[Program], parts: Sequence[str], launches: int, turns: int
) -> dict[str, list[tuple[float, ...]]]:
    """Returns the seconds of a step of each program, for each turn of each part.

    A pause comes before each turn, in which the other side's threads fall asleep. The
    command ends where a process has an error, or where the networks have not the same
    number of parameters.
    """
    times: dict[str, list[tuple[float, ...]]] = {part: [] for part in parts}
    for _ in range(launches):
        with closing([Side(*program) for program in programs]) as sides:
            counts = {side.module: _ask_or_exit(side, "parameters") for side in sides}
            if len({*counts.values()}) > 1:
                listed = ", ".join(f"{n:,} in {module}" for module, n in counts.items())
                sys.exit(f"not the same network: parameters are {listed}")
            for part in parts:
                for _ in range(turns):
                    seconds = []
                    for side in sides:
                        time.sleep(0.3)
                        seconds.append(_ask_or_exit(side, part))
                    times[part].append(tuple(seconds))
    return times


def median_ratio(turns: Sequence[tuple[float, ...]]) -> float:
    """Returns how many times as fast the first program is as the second, as a median.

    It is that of neighboring turns, of which both are slower where the machine is.
    """
    return statistics.median(second / first for first, second in turns)


def _ask_or_exit(side: Side, request: str) -> Any:
    try:
        return side.ask(request)
    except Unanswered as error:
        sys.exit(f"{side.errors()}\n{side.module}, {request}: {error}")

"""Cases in a process of their own, where they may crash, hang or take all memory.

  python -m tests.torture.isolated images --seed 0 --first 0 --count 100

prints a line of JSON when a case begins and one when it ends.
"""

import argparse
import dataclasses
import importlib
import json
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tests.torture.attack import Attack, Case, Outcome, Verdict, wrong

# What one picture or one small set of records may take.
MAX_BYTES = 2**30
MAX_CPU_SECONDS = 10.0
# The process may take more, so that what is taken is measured and not only refused.
ADDRESS_SPACE = 16 * 2**30
ANSWER_SECONDS = 120


def run_isolated(laboratory: Any, cases: Sequence[Case]) -> Iterator[Outcome]:
    """Gives the outcomes of cases whose module has a function `judge`.

    A process that dies or does not answer is the outcome of the case that it was at;
    the cases after it go on in a new one.
    """
    done = 0
    while done < len(cases):
        with _Child(laboratory, cases[done:]) as child:
            for outcome in child.outcomes():
                done += 1
                yield outcome


class _Child:
    """The process that runs some cases."""

    def __init__(self, laboratory: Any, cases: Sequence[Case]):
        first = cases[0]
        self._count = len(cases)
        self._log = laboratory.folder / "isolated.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.torture.isolated", first.attack),
                    *("--seed", str(first.seed), "--first", str(first.number)),
                    *("--count", str(len(cases)), "--folder", laboratory.folder),
                ],
                cwd=laboratory.root,
                env=laboratory.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self._process.stdout is not None
        reader = threading.Thread(
            target=_forward, args=(self._process.stdout, self._lines), daemon=True
        )
        reader.start()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def outcomes(self) -> Iterator[Outcome]:
        """Gives the outcome of each case; the last may be the end of the process."""
        for _ in range(self._count):
            try:
                line = self._lines.get(timeout=ANSWER_SECONDS)
            except queue.Empty:
                yield wrong(f"no answer within {ANSWER_SECONDS} s")
                return
            if not line:
                code = self._process.wait()
                tail = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                yield wrong(f"the process died, exit code {code}: {tail}")
                return
            verdict, reason = json.loads(line)
            yield Outcome(Verdict(verdict), reason)


def _forward(lines: IO[str], to: "queue.SimpleQueue[str]") -> None:
    for line in lines:
        to.put(line)
    to.put("")


@dataclasses.dataclass
class Effort:
    """What a piece of work took, once it is done."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def excess(self) -> str | None:
        """Says what was more than is allowed."""
        if self.cpu_seconds > MAX_CPU_SECONDS:
            return f"{self.cpu_seconds:.1f} s of CPU, more than {MAX_CPU_SECONDS:g}"
        if self.peak_bytes > MAX_BYTES:
            return f"{self.peak_bytes / 2**20:,.0f} MiB, more than {MAX_BYTES >> 20:,}"
        return None


def measure(work: Callable[[], Any]) -> tuple[Any, Effort]:
    """Does some work; returns its result, or what it raised, and what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    before, began = _memory("VmRSS"), time.process_time()
    result: Any
    try:
        result = work()
    except Exception as error:
        result = error
    seconds = time.process_time() - began
    return result, Effort(seconds, _memory("VmHWM") - before)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"expected {field} in /proc/self/status")


def main() -> None:
    """Runs the cases of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("attack")
    for name in ("--seed", "--first", "--count"):
        parser.add_argument(name, type=int)
    parser.add_argument("--folder", type=Path)
    values = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module = importlib.import_module(f"tests.torture.{values.attack}")
    attack: Attack = module.ATTACK
    answers, sys.stdout = sys.stdout, sys.stderr  # what the library prints is no answer
    for number in range(values.first, values.first + values.count):
        case = attack.case(values.seed, number)
        outcome: Outcome = module.judge(case, values.folder)
        print(
            json.dumps([outcome.verdict.value, outcome.reason]),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()

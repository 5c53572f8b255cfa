"""The loop that shares the time among the attacks, and what is printed meanwhile."""

import argparse
import datetime
import importlib
import itertools
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from tests.torture.attack import Attack, Verdict, wrong
from tests.torture.laboratory import Laboratory, PreparationFailed, open_laboratory
from tests.torture.processes import MainThreadOutput
from tests.torture.tally import (
    Tally,
    failure_line,
    failure_lines,
    markdown,
    text_table,
    write_block,
)

PROGRESS_SECONDS = 15


def run(values: argparse.Namespace) -> int:
    """Runs the attacks of a command line; returns the exit code."""
    attacks = [
        importlib.import_module(f"tests.torture.{name}").ATTACK for name in values.names
    ]
    tallies = {attack.name: Tally() for attack in attacks}
    sys.stderr = MainThreadOutput(sys.stderr)  # type: ignore[assignment]
    with open_laboratory(values.folder) as laboratory:
        jax.config.update(
            "jax_compilation_cache_dir",
            laboratory.environment["JAX_COMPILATION_CACHE_DIR"],
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        try:
            if values.repeat:
                repeat(attacks[0], laboratory, values, tallies)
            else:
                seconds = 3600 * values.hours
                share_time(attacks, laboratory, values.seed, seconds, tallies, show)
        except KeyboardInterrupt:
            print("stopped", flush=True)
    print(text_table(tallies))
    for line in failure_lines(tallies):
        print(line)
    if values.write is not None:
        write_block(values.write, markdown(attacks, tallies, heading(values)))
    return int(any(tally.failures for tally in tallies.values()))


def repeat(
    attack: Attack,
    laboratory: Laboratory,
    values: argparse.Namespace,
    tallies: Mapping[str, Tally],
) -> None:
    """Runs one case."""
    number = int(values.repeat.partition(":")[2])
    case = attack.case(values.seed, number)
    print(f"{case.name}: {case.kind}", flush=True)
    for outcome in attack.run(laboratory, [case]):
        tallies[attack.name].add(case, outcome)


def share_time(
    attacks: Sequence[Attack],
    laboratory: Laboratory,
    seed: int,
    seconds: float,
    tallies: Mapping[str, Tally],
    report: Callable[[str], None],
) -> None:
    """Runs cases until the time is over.

    The next case is always of the attack that is farthest behind its share. A command
    that fails though nobody attacked it counts as a case, and is tried again with the
    next one.
    """
    began = last_report = time.monotonic()

    def progress() -> str:
        spent = time.monotonic() - began
        tried = sum(tally.tried for tally in tallies.values())
        bad = sum(len(tally.failures) for tally in tallies.values())
        counts = ", ".join(f"{name} {tally.tried:,}" for name, tally in tallies.items())
        rate = 60 * tried / max(spent, 1)
        left = max(seconds - spent, 0)
        return (
            f"{_clock(spent)} of {_clock(seconds)}, {_clock(left)} left: "
            f"{counts}; {bad} not as they should; {rate:,.0f} cases a minute"
        )

    while time.monotonic() - began < seconds:
        attack = min(attacks, key=lambda one: tallies[one.name].seconds / one.weight)
        tally, since = tallies[attack.name], time.monotonic()
        first = tally.tried
        cases = [attack.case(seed, first + i) for i in range(attack.batch)]
        try:
            for case, outcome in zip(cases, attack.run(laboratory, cases), strict=True):
                tally.add(case, outcome)
                if outcome.verdict is not Verdict.RIGHT:
                    report(failure_line(case, outcome))
        except PreparationFailed as error:
            outcome = wrong(str(error))
            tally.add(cases[0], outcome)
            report(failure_line(cases[0], outcome))
        finally:
            tally.seconds += time.monotonic() - since
        if time.monotonic() - last_report > PROGRESS_SECONDS:
            report(progress())
            last_report = time.monotonic()
    report(progress())


def show(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def heading(values: argparse.Namespace) -> str:
    """Says with which command, where and when a table came to be."""
    # The name of the document is a word of its own, or follows `--write=`.
    words = [
        word
        for before, word in itertools.pairwise(sys.argv)
        if before != "--write" and not word.startswith("--write")
    ]
    command = shlex.join(["python", "-m", "tests.torture", *words])
    return (
        f"`{command}`, {datetime.date.today():%Y-%m-%d}, {machine()}, "
        f"Python {platform.python_version()}, JAX {jax.__version__}:"
    )


def machine() -> str:
    """Describes the processor, such as "2 cores of an AMD EPYC"."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = " ".join(names[0].split()[:2]) if names else platform.machine()
    return f"{os.cpu_count()} cores of an {name}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"

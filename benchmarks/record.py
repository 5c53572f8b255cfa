"""Says what a benchmark ran on, and writes what it measured beside its table."""

import argparse
import datetime
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from benchmarks.sides import median_ratio
from vgg_jax.files import parse_path, validate_writable, write_json

# Whose versions are told, where they are installed.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "grain",
    "numpy",
    "opencv-python-headless",
    "nvidia-nvimgcodec-cu13",
    "torch",
    "lpips",
)
_VERSIONS = """
import importlib.metadata, json, platform, sys
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --write, which `Record.begin` takes."""
    parser.add_argument(
        "--write",
        metavar="FILE",
        help="of JSON: all measurements, the machine and the versions",
    )


class Record:
    """What a benchmark has measured, row by row.

    Args:
        file: the file that is written after each row; None for none.
        facts: the machine, the date, the command and the versions.
    """

    def __init__(self, file: epath.Path | None, facts: dict[str, Any]):
        self._file, self._facts = file, facts
        self._rows: list[dict[str, Any]] = []

    @classmethod
    def begin(cls, write: str | None, others: Iterable[str | None] = ()) -> "Record":
        """Prints on what is measured, before anything is.

        Args:
            write: the value of --write.
            others: further interpreters whose packages take part; None for none.

        The command ends where the file cannot be written, or an interpreter is none.
        """
        try:
            file = None if write is None else writable(write)
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        # Grain comes with it, which the benchmark of GPUs has to do without.
        from vgg_jax.data.pipeline import cores

        interpreters = [sys.executable, *(python for python in others if python)]
        found = [versions(python) for python in interpreters]
        facts: dict[str, Any] = {
            "command": shlex.join(sys.argv),
            "date": now(),
            "processor": processor(),
            "cores": cores(),
            "versions": found,
        }
        listed = [
            ", ".join(f"{name} {version}" for name, version in one.items())
            for one in found
        ]
        machine = f"{facts['processor']}, {facts['cores']} cores"
        print("; ".join([machine, *listed, facts["date"]]) + "\n", flush=True)
        return cls(file, facts)

    def add(self, **row: Any) -> None:
        """Keeps a row, of values that JSON has, and writes the file."""
        self._rows.append(row)
        if self._file is not None:
            save(self._file, self._facts | {"rows": self._rows})


def writable(text: str) -> epath.Path:
    """Returns the path of a file that can be written, whose folder may not exist yet.

    Raises:
        OSError, ValueError: it cannot be written.
    """
    file = parse_path(text)
    validate_writable(file.parent)
    if file.is_dir():
        raise ValueError(f"expected --write to name a file, got the folder {text!r}")
    return file


def save(file: epath.Path, contents: dict[str, Any]) -> None:
    """Writes a file that `writable` has allowed, and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, contents)


def now() -> str:
    """Returns the time, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def processor() -> str:
    """Returns the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    wide = " with AVX-512" if re.search(r"\bavx512f\b", text) else ""
    return (names[0] if names else platform.machine()) + wide


def versions(python: str) -> dict[str, str]:
    """Returns the version of an interpreter and those of its packages."""
    command = [python, "-c", _VERSIONS, *PACKAGES]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: expected an interpreter of Python, got {python}: {error}")
    return dict(json.loads(answer.stdout))


def compare(
    turns: Sequence[tuple[float, ...]], units: int, digits: int
) -> tuple[list[list[float]], list[str]]:
    """Returns the rates of each side, and the cells of a table that has them.

    Args:
        turns: the seconds of a step of each side, for each turn.
        units: how many units a step has.
        digits: of a rate, behind the point.

    Returns:
        The units a second of each side in each turn; and for each side a cell, with the
        ratio where there are two.
    """
    sides = [[units / s for s in seconds] for seconds in zip(*turns, strict=True)]
    cells = [spread(rates, digits) for rates in sides]
    if len(sides) == 2:
        cells.append(f"{median_ratio(turns):.2f}")
    return sides, cells


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Returns the median of numbers, with the smallest and the largest of several."""
    median, *ends = (
        f"{value:,.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({ends[0]} to {ends[1]})" if len(values) > 1 else median

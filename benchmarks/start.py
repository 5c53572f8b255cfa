"""Times train.py up to its first step, without and with compiled programs.

python -m benchmarks.start [--config FILE] [--starts N]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record
from vgg_jax import cli

ROOT = Path(__file__).parents[1]


def seconds_to_first_step(config: str, workdir: Path, cache: Path) -> float:
    """Returns the seconds until train.py prints the line of its first step."""
    command = [sys.executable, "train.py", "--config", config]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, f"--workdir={workdir}", "--config.log_every_steps=1"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1/"):
                elapsed = time.perf_counter() - start
                process.kill()
                return elapsed
    sys.exit("train.py took no step; its error is above")


def main(command_line: Sequence[str] | None = None) -> None:
    """Prints both times."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description="Times train.py to its first step.",
    )
    parser.add_argument("--config", default="configs/fashion_mnist_vgg.py")
    parser.add_argument("--starts", type=cli.positive, default=2, help="of each kind")
    record.add_flag(parser)
    arguments = parser.parse_args(command_line)
    config = arguments.config
    measured = record.Record.begin(arguments.write)
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as folder:
        # Not counted: data that must be fetched, files that the system has not read.
        seconds_to_first_step(config, Path(folder) / "warm", Path(folder) / "unused")
        for i in range(arguments.starts):
            for name, taken in seconds.items():
                place, cache = Path(folder) / f"{name} {i}", Path(folder) / f"cache {i}"
                taken.append(seconds_to_first_step(config, place, cache))
    for name, taken in seconds.items():
        said = record.spread(taken, 1)
        print(f"{name} start: first step after {said} s", flush=True)
        measured.add(start=name, seconds=taken)


if __name__ == "__main__":
    main()

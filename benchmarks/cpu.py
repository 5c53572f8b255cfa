"""Speed on CPU beside PyTorch's: make benchmark-cpu [CASES="nin_tutorial ..."]

Alone, without PyTorch's column: python -m benchmarks.cpu [CASE ...]

Runs the same networks in two processes that take turns, and prints the median of the
turns of several pairs: where the memory of a process lies makes one faster than others.
A training step is forward, backward and the update of SGD with momentum.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from vgg_jax.config import Config, to_dict

ROOT = Path(__file__).parents[1]
PARTS = ("forward", "train")


class Side:
    """One of the two processes, which measures when it is told to.

    Args:
        python: the interpreter that runs it.
        module: what it runs.
        arguments: the keywords of the module's `main`.
    """

    def __init__(self, python: str, module: str, **arguments: Any):
        self._module = module
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.parameters = int(self._answer())

    def seconds(self, part: str) -> float:
        """Returns the seconds of a step of a part, "forward" or "train".

        A pause comes first, in which the other side's threads fall asleep.
        """
        time.sleep(0.3)
        assert self._process.stdin is not None
        print(json.dumps(part), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._module} stopped; its error is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def measure_turns(
    name: str, config: Config, parts: Sequence[str], arguments: argparse.Namespace
) -> dict[str, list[tuple[float, ...]]]:
    """Returns seconds of a step in JAX, and in PyTorch, for each turn of each part."""
    turns: dict[str, list[tuple[float, ...]]] = {part: [] for part in parts}
    for _ in range(arguments.launches):
        sides = [
            Side(
                sys.executable,
                "benchmarks.in_jax",
                config=to_dict(config),
                seconds=arguments.seconds,
            )
        ]
        if arguments.torch:
            sides.append(
                Side(
                    arguments.torch,
                    "benchmarks.in_torch",
                    options=dataclasses.asdict(config.model),
                    side=config.data.crop,
                    batch_size=config.batch_size,
                    seconds=arguments.seconds,
                )
            )
        if len({side.parameters for side in sides}) > 1:
            sys.exit(
                f"{name} is not the same network: {sides[0].parameters:,} parameters "
                f"in JAX, {sides[1].parameters:,} in PyTorch"
            )
        for part in parts:
            turns[part] += [
                tuple(side.seconds(part) for side in sides)
                for _ in range(arguments.turns)
            ]
        for side in sides:
            side.close()
    return turns


def main(command_line: Sequence[str] | None = None) -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--part", action="append", choices=PARTS, help="of a case")
    parser.add_argument("--launches", type=int, default=3, help="of each process")
    parser.add_argument("--turns", type=int, default=3, help="of a process, a part")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    arguments = parser.parse_args(command_line)
    parts = arguments.part or PARTS
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; there are {', '.join(CASES)}")
    columns = ["network", "part", "JAX images/s"]
    columns += ["PyTorch images/s", "ratio"] if arguments.torch else []
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|", flush=True)
    for name in arguments.cases:
        config = CASES[name]
        turns = measure_turns(name, config, parts, arguments)
        for part in parts:
            rates = [
                config.batch_size / statistics.median(seconds)
                for seconds in zip(*turns[part], strict=True)
            ]
            cells = [name, part, *(f"{rate:,.1f}" for rate in rates)]
            cells += [f"{rates[0] / rates[1]:.2f}"] if arguments.torch else []
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

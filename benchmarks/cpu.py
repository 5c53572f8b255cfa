"""Speed on CPU beside PyTorch's: make benchmark-cpu [CASES="nin_tutorial ..."]

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

from cases import CASES

from vgg_jax.config import Config

HERE = Path(__file__).parent
PARTS = ("forward", "train")


class Side:
    """One of the two processes: a command that measures when it is told to."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            command,
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
        assert self.process.stdin is not None
        print(json.dumps(part), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[1]} stopped; its error is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def measure_turns(
    name: str, config: Config, parts: Sequence[str], arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Returns seconds of a step in JAX and in PyTorch, for each turn of each part."""
    network = {
        "options": dataclasses.asdict(config.model),
        "side": config.data.crop,
        "batch_size": config.batch_size,
        "seconds": arguments.seconds,
    }
    turns: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for _ in range(arguments.launches):
        in_jax = Side(sys.executable, f"{HERE}/in_jax.py", name, str(arguments.seconds))
        in_torch = Side(arguments.torch, f"{HERE}/in_torch.py", json.dumps(network))
        if in_jax.parameters != in_torch.parameters:
            sys.exit(
                f"{name} is not the same network: {in_jax.parameters:,} parameters in "
                f"JAX, {in_torch.parameters:,} in PyTorch"
            )
        for part in parts:
            turns[part] += [
                (in_jax.seconds(part), in_torch.seconds(part))
                for _ in range(arguments.turns)
            ]
        in_jax.close()
        in_torch.close()
    return turns


def main() -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--torch", required=True, help="a Python that has PyTorch")
    parser.add_argument("--part", action="append", choices=PARTS, help="of a case")
    parser.add_argument("--launches", type=int, default=3, help="of each process")
    parser.add_argument("--turns", type=int, default=3, help="of a process, a part")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    arguments = parser.parse_args()
    parts = arguments.part or PARTS
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; there are {', '.join(CASES)}")
    print("| network | part | JAX images/s | PyTorch images/s | ratio |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.cases:
        config = CASES[name]
        turns = measure_turns(name, config, parts, arguments)
        for part in parts:
            jax_rate, torch_rate = (
                config.batch_size / statistics.median(seconds)
                for seconds in zip(*turns[part], strict=True)
            )
            print(
                f"| {name} | {part} | {jax_rate:,.1f} | {torch_rate:,.1f} "
                f"| {jax_rate / torch_rate:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

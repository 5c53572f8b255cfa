"""Speed on CPU beside PyTorch's: make benchmark-cpu [CASES="nin_tutorial ..."]

The same networks in two processes, which take turns; the median of several turns each,
in several pairs of processes: where its memory lies makes one faster than the next.
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
    """One of the two processes."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.parameters = int(self._answer())

    def seconds(self, part: str) -> float:
        """Of a step, after a pause in which the other side's threads fall asleep."""
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
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(
    name: str, config: Config, parts: Sequence[str], arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a step in JAX and in PyTorch, for each turn of each part."""
    network = {
        "options": dataclasses.asdict(config.model),
        "side": config.data.crop,
        "batch_size": config.batch_size,
        "seconds": arguments.seconds,
    }
    turns: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for _ in range(arguments.launches):
        jax = Side(sys.executable, f"{HERE}/in_jax.py", name, str(arguments.seconds))
        torch = Side(arguments.torch, f"{HERE}/in_torch.py", json.dumps(network))
        if jax.parameters != torch.parameters:
            sys.exit(
                f"{name} is not the same network: {jax.parameters:,} parameters in "
                f"JAX, {torch.parameters:,} in PyTorch"
            )
        for part in parts:
            turns[part] += [
                (jax.seconds(part), torch.seconds(part)) for _ in range(arguments.turns)
            ]
        jax.close()
        torch.close()
    return turns


def main() -> None:
    """Print the table, row by row."""
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
        turns = measure(name, config, parts, arguments)
        for part in parts:
            ours, theirs = (
                config.batch_size / statistics.median(column)
                for column in zip(*turns[part], strict=True)
            )
            print(
                f"| {name} | {part} | {ours:,.1f} | {theirs:,.1f} "
                f"| {ours / theirs:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

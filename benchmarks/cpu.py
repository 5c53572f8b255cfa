"""Speed on CPU beside PyTorch's: make benchmark-cpu [CASES="nin_tutorial ..."]

Alone, without PyTorch's column: python -m benchmarks.cpu [CASE ...]

Runs the same networks in two processes that take turns, and prints the median of the
turns of several pairs, with the slowest and the fastest: where the memory of a process
lies makes one faster than others.
The ratio is the median of those of neighboring turns, for a machine that others use is
now faster and now slower, for seconds on end.
A training step is forward, backward and the update of SGD with momentum.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from benchmarks import record
from benchmarks.cases import CASES
from benchmarks.sides import measure_launches
from vgg_jax.config import Config, to_dict

PARTS = ("forward", "train")


def measure_case(
    config: Config, parts: Sequence[str], arguments: argparse.Namespace
) -> dict[str, list[tuple[float, ...]]]:
    """Returns seconds of a step in JAX, and in PyTorch, for each turn of each part."""
    ours = {"config": to_dict(config), "seconds": arguments.seconds}
    theirs = {
        "options": dataclasses.asdict(config.model),
        "side": config.data.crop,
        "batch_size": config.batch_size,
        "seconds": arguments.seconds,
    }
    programs = [(sys.executable, "benchmarks.in_jax", ours | {"platform": "cpu"})]
    if arguments.torch:
        programs.append((arguments.torch, "benchmarks.in_torch", theirs))
    return measure_launches(programs, parts, arguments.launches, arguments.turns)


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
    parser.add_argument("--turns", type=int, default=6, help="of a process, a part")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    record.add_flag(parser)
    arguments = parser.parse_args(command_line)
    parts = arguments.part or PARTS
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; there are {', '.join(CASES)}")
    measured = record.Record.begin(arguments.write, [arguments.torch])
    columns = ["network", "part", "JAX images/s"]
    columns += ["PyTorch images/s", "ratio"] if arguments.torch else []
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|", flush=True)
    for name in arguments.cases:
        config = CASES[name]
        turns = measure_case(config, parts, arguments)
        for part in parts:
            sides, cells = record.compare(turns[part], config.batch_size, 1)
            print(f"| {' | '.join([name, part, *cells])} |", flush=True)
            measured.add(network=name, part=part, images_per_second=sides)


if __name__ == "__main__":
    main()

"""Speed of LPIPS on CPU beside the `lpips` package: make benchmark-cpu

Alone, without the package's column: python -m benchmarks.losses

Two processes take turns, as in `benchmarks.cpu`, and the medians of the turns are
printed. A gradient is that of the mean distance with respect to one of the images; with
a cached target the features of the other image are computed once, for which the package
has no function: its column is then its ordinary gradient.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import record
from benchmarks.sides import measure_launches

PARTS = {
    "forward": "forward",
    "gradient": "gradient",
    "gradient, cached target": "cached",
}


def measure(arguments: argparse.Namespace) -> dict[str, list[tuple[float, ...]]]:
    """Returns seconds of a step in JAX, and in PyTorch, for each turn of each part."""
    settings = {
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "width": arguments.width,
        "seconds": arguments.seconds,
    }
    programs = [(sys.executable, "benchmarks.losses_in_jax", settings)]
    if arguments.torch:
        programs.append((arguments.torch, "benchmarks.losses_in_torch", settings))
    requests = list(PARTS.values())
    return measure_launches(programs, requests, arguments.launches, arguments.turns)


def main(command_line: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has lpips")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch_size", type=int, default=2, help="pairs of images")
    parser.add_argument(
        "--width", type=float, default=1.0, help="of VGG-16, without --torch"
    )
    parser.add_argument("--launches", type=int, default=3, help="of each process")
    parser.add_argument("--turns", type=int, default=6, help="of a process, a part")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    record.add_flag(parser)
    arguments = parser.parse_args(command_line)
    measured = record.Record.begin(arguments.write, [arguments.torch])
    columns = ["LPIPS", "JAX pairs/s"]
    columns += ["lpips pairs/s", "ratio"] if arguments.torch else []
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|", flush=True)
    turns = measure(arguments)
    for part, request in PARTS.items():
        sides, cells = record.compare(turns[request], arguments.batch_size, 2)
        print(f"| {' | '.join([part, *cells])} |", flush=True)
        measured.add(part=part, pairs_per_second=sides)


if __name__ == "__main__":
    main()

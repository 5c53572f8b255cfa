"""Speed of LPIPS on CPU beside the `lpips` package: make benchmark-cpu

Alone, without the package's column: python -m benchmarks.losses

Two processes take turns, as in `benchmarks.cpu`, and the medians of the turns are
printed. A gradient is that of the mean distance with respect to one of the images; with
a cached target the features of the other image are computed once, for which the package
has no function: its column is then its ordinary gradient.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.cpu import Side

PARTS = {
    "forward": "forward",
    "gradient": "gradient",
    "gradient, cached target": "cached",
}


def measure_turns(arguments: argparse.Namespace) -> dict[str, list[tuple[float, ...]]]:
    """Returns seconds of a step in JAX, and in PyTorch, for each turn of each part."""
    modules = [(sys.executable, "benchmarks.losses_in_jax")]
    if arguments.torch:
        modules.append((arguments.torch, "benchmarks.losses_in_torch"))
    turns: dict[str, list[tuple[float, ...]]] = {part: [] for part in PARTS}
    for _ in range(arguments.launches):
        sides = [
            Side(
                python,
                module,
                size=arguments.size,
                batch_size=arguments.batch_size,
                width=arguments.width,
                seconds=arguments.seconds,
            )
            for python, module in modules
        ]
        if len({side.parameters for side in sides}) > 1:
            sys.exit(
                f"not the same LPIPS: {sides[0].parameters:,} weights in JAX, "
                f"{sides[1].parameters:,} in PyTorch"
            )
        for part, request in PARTS.items():
            turns[part] += [
                tuple(side.seconds(request) for side in sides)
                for _ in range(arguments.turns)
            ]
        for side in sides:
            side.close()
    return turns


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
    parser.add_argument("--turns", type=int, default=3, help="of a process, a part")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    arguments = parser.parse_args(command_line)
    columns = ["LPIPS", "JAX pairs/s"]
    columns += ["lpips pairs/s", "ratio"] if arguments.torch else []
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|", flush=True)
    for part, turns in measure_turns(arguments).items():
        rates = [
            arguments.batch_size / statistics.median(seconds)
            for seconds in zip(*turns, strict=True)
        ]
        cells = [part, *(f"{rate:,.2f}" for rate in rates)]
        cells += [f"{rates[0] / rates[1]:.2f}"] if arguments.torch else []
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

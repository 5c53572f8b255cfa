"""Tries to make the library lose data or give a wrong result; prints a table.

  python -m tests.torture [--hours 0.25] [--seed 0] [--only kills,disks]
  python -m tests.torture --repeat kills:17 --seed 0

The time is shared by the attacks; Ctrl-C prints the table so far. A case that does not
end as it should is printed at once, with what repeats it. The exit code is 0 if every
case ended as it should, 1 otherwise.
"""

import argparse
import os
import sys
from pathlib import Path

ISOLATED = "VGG_JAX_TORTURE_ISOLATED"


def read_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--hours", type=float, default=0.25, help="how long; 0.25 by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="0 by default")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,NAME",
        help="attacks to run, of " + ", ".join(NAMES),
    )
    parser.add_argument(
        "--repeat", metavar="NAME:NUMBER", help="run one case of an attack alone"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="put the table into a document, such as docs/trust.md",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where to work; kept in the end, so that a second call with the same code "
        "begins sooner",
    )
    values = parser.parse_args()
    names = values.only.split(",") if values.only else []
    if values.repeat:
        names = [values.repeat.partition(":")[0]]
        if not values.repeat.partition(":")[2].isdecimal():
            parser.error(f"expected --repeat NAME:NUMBER, got {values.repeat!r}")
    if unknown := set(names) - set(NAMES):
        parser.error(f"unknown attack {unknown.pop()!r}; one of {', '.join(NAMES)}")
    values.names = names or list(NAMES)
    return values


NAMES = (
    *("kills", "signals", "disks", "damage", "images", "records"),
    *("configurations", "commands", "hosts"),
)


def mount_apart() -> None:
    """Starts this program anew where it may mount disks that nobody else sees."""
    if ISOLATED not in os.environ:
        os.environ[ISOLATED] = "1"
        options = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
        again = [sys.executable, "-m", "tests.torture", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", *options, *again])


def main() -> int:
    """Runs the program; returns its exit code."""
    values = read_arguments()
    mount_apart()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # JAX, which these import, looks at the environment at once.
    from tests.torture import program

    return program.run(values)


if __name__ == "__main__":
    sys.exit(main())

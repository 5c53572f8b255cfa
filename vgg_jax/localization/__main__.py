"""Measures how well networks find objects (appendix A of arXiv:1409.1556).

  python -m vgg_jax.localization --workdir BOXES --classifier_workdir CLASSES

Prints errors, and writes localization.json and boxes.png into the first workdir.
"""

import argparse
import sys
from collections.abc import Sequence

from vgg_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.localization", __doc__)
    parser.add_workdir(
        "folder of the run of a network that predicts boxes; those of several networks "
        "are merged together",
        several=True,
    )
    parser.add_argument(
        "--classifier_workdir",
        type=cli.path,
        required=True,
        metavar="DIR",
        help="folder of the run of a classifier, which rates the boxes",
    )
    parser.add_scales("those of the first workdir's configuration by default")
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Evaluates the networks of the command line; returns 0."""
    from vgg_jax.localization.compare import run_localization

    run_localization(values.workdir, values.classifier_workdir, values.scales)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

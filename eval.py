"""Evaluates trained networks on the test set (section 3.2 of arXiv:1409.1556).

  python eval.py --config configs/NAME.py [--workdir DIR] [--protocol dense]
  python eval.py --config configs/vgg16.py --weights torchvision/vgg16

Several --workdir are fused; several --protocol are rows of one table. Without a
--protocol the rows are the center crop, dense at each scale, and dense over all scales.
The run NAME of a curriculum lies in runs/curriculum/NAME. Writes eval.json and pictures
into the first workdir; docs/evaluation.md says which.
"""

import argparse
import sys
from collections.abc import Sequence

from vgg_jax import cli, distributed
from vgg_jax.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    from vgg_jax.evaluation.protocols import PROTOCOLS

    parser = cli.Parser("python eval.py", __doc__, config=(Config,))
    parser.add_workdir(
        "folder of a run; several are fused", several=True, or_weights=True
    )
    parser.add_argument(
        "--protocol",
        action="append",
        default=[],
        type=cli.one_of(PROTOCOLS),
        metavar="NAME",
        help="; ".join(f"{name}: {one.description}" for name, one in PROTOCOLS.items()),
    )
    parser.add_scales("of the networks' own configurations by default")
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Evaluates; returns 0."""
    distributed.join()
    from vgg_jax.evaluation.evaluate import run_evaluation
    from vgg_jax.report.artifacts import write_artifacts
    from vgg_jax.training.workdir.weights_folder import folders_of

    folders = folders_of(values, values.config)
    evaluation = run_evaluation(folders, values.config, values.protocol, values.scales)
    if distributed.is_first():
        write_artifacts(evaluation)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

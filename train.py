"""Trains a network, or one network after another (section 3.1 of arXiv:1409.1556).

  python train.py --config configs/NAME.py [--workdir DIR] [--config.batch_size=128]

The same command goes on with a run, or with a curriculum of runs, that was stopped. It
leaves checkpoints, metrics and learning curves in the workdir.
"""

import argparse
import sys
from collections.abc import Sequence

from etils.epath import Path

from vgg_jax import cli, distributed
from vgg_jax.config import Config, Curriculum
from vgg_jax.config_file import named_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python train.py", __doc__, config=(Config, Curriculum))
    parser.add_workdir("folder of the run")
    parser.add_argument(
        "--profile",
        type=cli.positive,
        default=0,
        metavar="N",
        help="trace N steps into the folder profile of the workdir, for a viewer of "
        "XLA's profiles",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Trains; returns 0, or 128 and the number of the signal that stopped it."""
    distributed.join()
    from vgg_jax.training.init_from import unfinished_runs
    from vgg_jax.training.loop import train
    from vgg_jax.training.workdir.facts import refuse_other_run

    for name, config in named_runs(values.config).items():
        refuse_other_run(values.workdir / name, config)
    for config, workdir in unfinished_runs(values.config, values.workdir):
        stopped = train(config, workdir, profile_steps=values.profile)
        if distributed.is_first():
            from vgg_jax.report.figures import draw_curves

            draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
        if stopped is not None:
            return cli.STOPPED + stopped
        if config.report:
            report(config, workdir)
    return cli.DONE


def report(config: Config, workdir: Path) -> None:
    """Evaluates a run on the test images, and writes its page."""
    from vgg_jax.evaluation.evaluate import run_evaluation
    from vgg_jax.report.__main__ import write_page
    from vgg_jax.report.artifacts import write_artifacts

    evaluation = run_evaluation([workdir], config, ["center"])
    if distributed.is_first():
        write_artifacts(evaluation)
        write_page([workdir], workdir / "report.html")


if __name__ == "__main__":
    sys.exit(main())

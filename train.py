"""Train a network: python train.py --config configs/NAME.py [--workdir DIR]

Any setting of vgg_jax/config.py can follow, as --config.batch_size=128 or
--config.model.dropout=0.3. Without --workdir the run lives in runs/NAME. The same
command goes on with a run that was stopped, or with a ladder of runs.
"""

import sys
from pathlib import Path

from absl import flags

from vgg_jax import cli, distributed
from vgg_jax.config import Config, Curriculum


def main(values: flags.FlagValues) -> int:
    """Train as the flags say; 0, or 128 and the signal that stopped it."""
    from vgg_jax.report.figures import draw_curves
    from vgg_jax.training.curriculum import pending_runs
    from vgg_jax.training.loop import train

    folder = Path(values.workdir or f"runs/{cli.config_name(sys.argv)}")
    for config, workdir in pending_runs(values.config, folder):
        stopped = train(config, workdir)
        if distributed.is_first():
            draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
        if stopped is not None:
            return 128 + stopped
    return 0


if __name__ == "__main__":
    values = cli.new_flags()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    cli.run(main, values, accepts=(Config, Curriculum))

"""Train a network: python train.py --config configs/NAME.py [--workdir DIR]

Any setting of vgg_jax/config.py can follow, as --config.batch_size=128 or
--config.model.dropout=0.3. Without --workdir the run lives in runs/NAME. The same
command goes on with a run that was stopped.
"""

import sys
from pathlib import Path

from absl import flags

from vgg_jax import cli, hosts


def main(values: flags.FlagValues) -> int:
    """Train as the flags say; 0, or 128 and the signal that stopped it."""
    from vgg_jax.evaluation.pictures import draw_curves
    from vgg_jax.training.loop import train

    workdir = Path(values.workdir or f"runs/{cli.config_name(sys.argv)}")
    stopped = train(values.config, workdir)
    if hosts.is_first():
        draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    return 0 if stopped is None else 128 + stopped


if __name__ == "__main__":
    values = cli.new_flags()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    cli.run(main, values)

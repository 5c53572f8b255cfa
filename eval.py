"""Evaluate trained networks on the test set (section 3.2 of arXiv:1409.1556).

python eval.py --config configs/NAME.py [--workdir DIR] [--scales 256,384,512]
    [--protocol center|tencrop|dense|multicrop|combined]

Several --workdir fuse their networks; several --protocol are rows of one table. Without
--protocol: the center crop, dense at each scale, dense over all scales. Writes
DIR/eval.json and pictures; docs/evaluation.md says what else.
"""

import sys

from absl import flags

from vgg_jax import cli, distributed


def main(values: flags.FlagValues) -> int:
    """Evaluate what the flags say; 0."""
    from vgg_jax.evaluation.evaluate import run_evaluation
    from vgg_jax.report.artifacts import write_artifacts

    evaluation = run_evaluation(
        values.workdir or [f"runs/{cli.config_name(sys.argv)}"],
        values.config,
        values.protocol,
        cli.scales(values.scales),
    )
    if distributed.is_first():
        write_artifacts(evaluation)
    return 0


if __name__ == "__main__":
    values = cli.new_flags()
    flags.DEFINE_multi_string("workdir", [], "folder of a run", flag_values=values)
    flags.DEFINE_multi_string(
        "protocol",
        [],
        "center, tencrop, dense, multicrop or combined",
        flag_values=values,
    )
    flags.DEFINE_list("scales", [], "short sides Q in pixels", flag_values=values)
    cli.run(main, values)

"""Computes the whitening of a training set's images, for data.whiten=True.

python -m vgg_jax.tools.whitening --config configs/nin_cifar.py

All training images count, with those that are held out for validation. A run with
--config.data.whiten=True uses what this leaves beside the data.
"""

import dataclasses

from absl import flags

from vgg_jax import cli
from vgg_jax.data.sources import open_source
from vgg_jax.data.whitening import measure_whitening, save_whitening, whitening_path


def main(values: flags.FlagValues) -> int:
    """Measures and saves."""
    config = dataclasses.replace(
        values.config.data, validation_fraction=0.0, color_shift=0.0
    )
    path = whitening_path(config)
    save_whitening(path, measure_whitening(open_source(config, "train"), config))
    print(f"saved in {path}; --config.data.whiten=True uses it")
    return 0


if __name__ == "__main__":
    cli.run(main, cli.new_flags())

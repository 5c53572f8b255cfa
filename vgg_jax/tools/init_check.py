"""Shows what an initialization does, before any training and without data.

  python -m vgg_jax.tools.init_check --config configs/vgg16.py [--config.model.init=he]

Eight smooth random images, normalized as the configuration's data are, go through its
network once for each init scheme. Prints which schemes will not start to learn and why,
and the layers under the configuration's own.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from vgg_jax import cli
from vgg_jax.config import Config, known_num_classes
from vgg_jax.console import format_columns
from vgg_jax.distributed import make_mesh
from vgg_jax.models.network import INITS
from vgg_jax.training.diagnosis import IMAGES, Signal, finding, measure_signals
from vgg_jax.training.program import build_program
from vgg_jax.training.steps import Batch

GRAIN = 8  # random colors a side, from which the images are drawn smoothly


def random_batch(config: Config) -> Batch:
    """Draws uint8 images [IMAGES, crop, crop, C], with a label for each.

    They are smooth, as neighboring pixels of photographs are alike.
    """
    channels, crop = config.model.in_channels, config.data.crop
    shape = (IMAGES, GRAIN, GRAIN, channels)
    colors = np.random.default_rng(0).uniform(0, 255, shape)
    images = jax.image.resize(colors, (IMAGES, crop, crop, channels), "linear")
    labels = jax.numpy.arange(IMAGES) % known_num_classes(config)
    return {"image": images.astype(np.uint8), "label": labels}


def preview(config: Config) -> tuple[float, list[Signal]]:
    """Returns the loss and each layer's signals before the first step of training.

    The weights are those that a run of this configuration begins with.
    """
    init = build_program(config, make_mesh(jax.local_devices()[:1])).init
    state = init(jax.random.split(jax.random.key(config.seed))[0])
    rate = config.optimizer.learning_rate
    batch = random_batch(config)
    return measure_signals(config, state.params, state.batch_stats, batch, rate=rate)


def compare_inits(config: Config) -> str:
    """Returns the verdict on each init scheme, and a table of the layers.

    The table is of the configuration's own scheme.
    """
    chance = math.log(known_num_classes(config))
    rate = config.optimizer.learning_rate
    lines = [
        f"{config.model.name} at rate {rate:g}, where a loss of {chance:.4g} is chance:"
    ]
    rows: list[Sequence[str]] = []
    for scheme in INITS:
        model = dataclasses.replace(config.model, init=scheme)
        loss, signals = preview(dataclasses.replace(config, model=model))
        fault = finding(signals)
        verdict = f"will not start: {fault}" if fault else "starts"
        lines.append(f"{scheme:<9}  loss {loss:<9.4g}  {verdict}")
        if scheme == config.model.init:
            for signal in signals:
                name, *numbers = dataclasses.astuple(signal)
                rows.append((name, *(f"{number:.2g}" for number in numbers)))
    headings = ("layer", "activation", "gradient", "step", "dead")
    return "\n".join(
        (
            *lines,
            "",
            f"With {config.model.init}: standard deviations, the length of one step "
            "over the weights', the share of dead channels",
            format_columns(headings, rows),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    command = "python -m vgg_jax.tools.init_check"
    parser = cli.Parser(command, __doc__, config=(Config,))
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prints the verdicts and the table; returns 0."""
    print(compare_inits(values.config))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

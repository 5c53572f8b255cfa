"""Transfers a network from five classes of Fashion-MNIST to the five others.

    python -m benchmarks.transfer_classes [--seeds 3] [--steps 300]

The network of configs/fashion_mnist_vgg.py learns T-shirt to coat on all their training
images, with each seed anew. Then sandal to ankle boot are learned from 10, 50 or all
images a class in three ways: a new last layer alone on the frozen network; all layers,
those that were there at a tenth of the rate; and all layers from random weights. Rates
and numbers of steps are the same for all sizes and were not tuned, the state after the
last step is tested on the 5,000 test images of the five classes. Prints a Markdown
table.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.transfer import fit
from configs.fashion_mnist_vgg import get_config
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import Config
from vgg_jax.data import transforms
from vgg_jax.data.base import Example, Source, Subset
from vgg_jax.data.pipeline import train_batches
from vgg_jax.data.sources import open_source
from vgg_jax.distributed import make_mesh
from vgg_jax.evaluation.predictions import wilson
from vgg_jax.inference.passes import View, over_source
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.program import Program, build_program
from vgg_jax.training.steps import TrainState

CLASSES = 5  # of each half
SIZES = (10, 50, None)  # training images a class; None for all
BATCH = 64
METRICS = ExampleMetrics(CLASSIFICATION.objective, with_boxes=False)
# What learns, how fast beside the new last layer, and whether it starts from the other
# five classes.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "frozen": ({"trained_layers": ("fc8",)}, True),
    "fine-tuned": ({"layer_rates": {"conv": 0.1, "bn": 0.1}}, True),
    "from scratch": ({}, False),
}


class SomeClasses:
    """The examples of `CLASSES` classes of a source, labeled from 0 on."""

    def __init__(
        self, source: Source, labels: np.ndarray, first: int, most: int | None = None
    ):
        """Takes the classes from number `first` on, and of each `most` or all."""
        indices = [
            np.flatnonzero(labels == first + label)[:most] for label in range(CLASSES)
        ]
        self._examples = Subset(source, np.sort(np.concatenate(indices)))
        self._first = first

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return self._examples.class_names[self._first : self._first + CLASSES]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        return {**example, "label": example["label"] - self._first}


def with_labels(source: Source) -> tuple[Source, np.ndarray]:
    """Returns a source and the labels of its examples."""
    return source, np.array([source[i]["label"] for i in range(len(source))])


def settings(steps: int, examples: int, seed: int, **optimizer: Any) -> Config:
    """Returns the configuration of a training of so many steps."""
    config = get_config()
    config.optimizer.learning_rate = 0.05
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=CLASSES),
        data=dataclasses.replace(config.data, validation_fraction=0.0),
        optimizer=dataclasses.replace(
            config.optimizer, schedule="cosine", warmup_epochs=0, **optimizer
        ),
        batch_size=BATCH,
        num_epochs=steps * BATCH / examples,
        seed=seed,
    )


def train(
    config: Config, program: Program, state: TrainState, source: Source
) -> TrainState:
    """Trains on a source, with the draws of the configuration's seed."""
    batches = train_batches(
        source,
        config.data,
        channels=1,
        batch_size=BATCH,
        seed=config.seed,
        start_step=0,
    )
    key = jax.random.key(config.seed)
    return fit(config, program, state, batches, len(source), key)


def begin_from(state: TrainState, learned: TrainState) -> TrainState:
    """Gives a state all that another one learned but for the last layer."""
    params = learned.params | {"fc8": state.params["fc8"]}
    return dataclasses.replace(
        state,
        params=jax.tree.map(jnp.copy, params),
        batch_stats=jax.tree.map(jnp.copy, learned.batch_stats),
    )


def test_errors(
    program: Program, config: Config, state: TrainState, test: Source
) -> np.ndarray:
    """Returns whether each test image is classified wrong."""
    view = View(config.data.crop, transforms.center)
    rows = over_source(program.network(state), METRICS, test, config, view)
    return rows["top1_error"]


def transfers(
    steps: int, first_steps: int, seeds: int
) -> Iterator[tuple[str, str, float, np.ndarray]]:
    """Trains in every way; gives size, way, seconds a run and the errors [seeds, N]."""
    data = dataclasses.replace(get_config().data, validation_fraction=0.0)
    whole, whole_test = (with_labels(open_source(data, s)) for s in ("train", "test"))
    others, test = SomeClasses(*whole, 0), SomeClasses(*whole_test, CLASSES)
    config = settings(first_steps, len(others), 0)
    program = build_program(config, make_mesh())
    learned = []
    for seed in range(seeds):
        seeded = dataclasses.replace(config, seed=seed)
        state = train(seeded, program, program.init(jax.random.key(seed)), others)
        mistakes = test_errors(program, seeded, state, SomeClasses(*whole_test, 0))
        print(f"the first five: {100 * mistakes.mean():.2f} %", file=sys.stderr)
        learned.append(state)
    for most, (way, (optimizer, transfers_weights)) in itertools.product(
        SIZES, WAYS.items()
    ):
        part = SomeClasses(*whole, CLASSES, most)
        config = settings(steps, len(part), 0, **optimizer)
        program = build_program(config, make_mesh())
        wrong = []
        started = time.time()
        for seed in range(seeds):
            seeded = dataclasses.replace(config, seed=seed)
            state = program.init(jax.random.key(seed))
            if transfers_weights:
                state = begin_from(state, learned[seed])
            state = train(seeded, program, state, part)
            wrong.append(test_errors(program, seeded, state, test))
        seconds = (time.time() - started) / seeds
        yield f"{most or 'all'} ({len(part)})", way, seconds, np.stack(wrong)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    parser.add_argument("--steps", type=int, default=300, help="of each transfer")
    parser.add_argument(
        "--first_steps", type=int, default=1500, help="on the first five classes"
    )
    values = parser.parse_args(arguments)
    prepare_jax()
    print("| a class | way | seconds | test error % | lowest to highest |")
    print("| ---: | --- | ---: | ---: | --- |")
    for size, way, seconds, wrong in transfers(
        values.steps, values.first_steps, values.seeds
    ):
        # The images are the same for every seed, so the interval is of one training.
        means = wrong.mean(axis=1)
        count = wrong.shape[1]
        rate = wilson(round(float(means.mean()) * count), count)
        print(
            f"| {size} | {way} | {seconds:.0f} | {100 * means.mean():.2f} "
            f"± {100 * rate.half_width:.2f} | {100 * means.min():.2f} to "
            f"{100 * means.max():.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

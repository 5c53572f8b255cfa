"""Compares small batches with batches 32 times as large on Fashion-MNIST.

    python -m benchmarks.large_batch [--width 0.125] [--epochs 14] [--validation_only]
    python -m benchmarks.large_batch --small_batch 128 --epochs 30 --warmup_epochs 4

A narrow network of configs/fashion_mnist_vgg.py is trained for the same number of
epochs by each recipe: SGD in batches of 32; the recipe of configs/fashion_mnist_pod.py
in batches of 1,024; and SGD in batches of that size with the rate scaled and warmed up,
but without LARS. All have the same schedule. With another small batch the large ones
are 32 times that, and the rates are in proportion. Prints a Markdown table with the
validation errors after the last step and the test errors of the best checkpoint by
validation, center crop. A recipe is chosen by --validation_only.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record
from configs import fashion_mnist_pod
from configs.fashion_mnist_pod import SMALL_BATCH
from vgg_jax import cli
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import Config
from vgg_jax.evaluation.evaluate import run_evaluation
from vgg_jax.training.loop import train

HEADS = ("recipe", "batch", "rate", "seconds", "validation error", "test error")


def recipes(
    width: float,
    epochs: float,
    small_batch: int = SMALL_BATCH,
    warmup_epochs: float | None = None,
) -> dict[str, Config]:
    """Returns the configurations that are compared, by their names in the table.

    The epochs of warm-up are those of each configuration where they are None.
    """
    small, pod = fashion_mnist_pod.in_small_batches(), fashion_mnist_pod.get_config()
    for config in (small, pod):
        config.batch_size = config.batch_size * small_batch // SMALL_BATCH
        config.optimizer.learning_rate *= small_batch / SMALL_BATCH
        if warmup_epochs is not None:
            config.optimizer.warmup_epochs = warmup_epochs
    pod.optimizer.trust_coefficient *= SMALL_BATCH / small_batch  # kernels stay
    for name in ("schedule", "polynomial_power"):
        setattr(small.optimizer, name, getattr(pod.optimizer, name))
    plain = dataclasses.replace(pod.optimizer, name="sgd")
    configs = {
        "SGD": small,
        "LARS": pod,
        "SGD, scaled": dataclasses.replace(pod, optimizer=plain),
    }
    for config in configs.values():
        config.num_epochs = epochs
        config.model = dataclasses.replace(config.model, width=width)
    return configs


def validation_error(workdir: Path) -> float:
    """Returns the top-1 error of a run's last validation, a fraction."""
    *_, last = (workdir / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(last)["validation_top1_error"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains by each recipe and prints the table."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.large_batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--epochs", type=float, default=14.0)
    parser.add_argument("--small_batch", type=cli.positive, default=SMALL_BATCH)
    parser.add_argument("--warmup_epochs", type=float, help="of all recipes")
    parser.add_argument("--validation_only", action="store_true")
    record.add_flag(parser)
    values = parser.parse_args(arguments)
    measured = record.Record.begin(values.write)
    prepare_jax()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        configs = recipes(
            values.width, values.epochs, values.small_batch, values.warmup_epochs
        )
        for name, config in configs.items():
            workdir, began = Path(folder) / name, time.perf_counter()
            train(config, str(workdir))
            cells = [name, f"{config.batch_size:,}"]
            cells += [f"{config.optimizer.learning_rate:g}"]
            seconds = time.perf_counter() - began
            cells += [f"{seconds:.0f}"]
            validated, error = validation_error(workdir), None
            cells += [f"{validated:.2%}"]
            if not values.validation_only:
                (result,) = run_evaluation([str(workdir)], config, ["center"]).results
                error = result.top1_error
                cells.append(f"{error.value:.2%} ± {error.half_width:.2%}")
            rows.append(cells)
            measured.add(
                recipe=name,
                batch_size=config.batch_size,
                learning_rate=config.optimizer.learning_rate,
                seconds=seconds,
                validation_error=validated,
                test_error=error and error.value,
            )
    heads = list(HEADS[: len(rows[0])])
    print("\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads)]))
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

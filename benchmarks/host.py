"""Times what a training step costs the host: the loop of train.py without its work.

python -m benchmarks.host [--network vgg16_bn] [--steps 2000]

The loop, its log, its state and its checkpoint are those of a training of a network of
VGG-16's depth, but the batch is there already and the compiled step computes next to
nothing, so that what is left is the time of the host. The table has the microseconds of
a whole step, with its share of a line of the log, and of its parts, each alone: those
that elapsed, and those that the main thread computed. They are those of the fastest 50
steps in a row, for other work on the machine only adds to them.
"""

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.soak import draw_noise
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.distributed import shard_batch
from vgg_jax.interrupt import Interrupt
from vgg_jax.training.compiled import CompiledStep
from vgg_jax.training.loop import Trainer
from vgg_jax.training.optimizer import set_learning_rate
from vgg_jax.training.steps import Batch, TrainState

BATCH, SIDE = 8, 32
SUMS = ("loss", "top1_error", "top5_error", "weight", "gradient_norm")
STEPS_PER_LINE = 50
REPETITIONS = 20  # of that many calls of a part

Moment = tuple[float, float]  # seconds elapsed, and computed by the main thread


def make_config(network: str, steps: int, pictures: Path) -> Config:
    """Makes the configuration of a run of so many steps, whose rate always changes."""
    config = Config(
        model=VGGConfig(
            name=network, num_classes=2, in_channels=1, width=1 / 16, fc_kernel=1
        ),
        data=DataConfig(
            dataset="folder",
            data_dir=str(pictures),
            crop=SIDE,
            scale_min=SIDE,
            scale_max=SIDE,
            mean=(128.0,),
            std=(64.0,),
            validation_fraction=0.5,
        ),
        optimizer=OptimizerConfig(schedule="cosine", metric="top1_error"),
        evaluation=EvaluationConfig(center_scale=SIDE, scales=(SIDE,)),
        batch_size=BATCH * jax.device_count(),
        checkpoint_every_steps=2 * steps,
        log_every_steps=STEPS_PER_LINE,
    )
    images = 64  # half of the pictures of `draw_noise`
    config.num_epochs = config.validate_every_epochs = (
        steps * config.batch_size / images
    )
    return config


class IdleTrainer(Trainer):
    """A run whose batch is there, and whose compiled step computes next to nothing."""

    def __init__(self, config: Config, workdir: str):
        super().__init__(config, workdir)
        rows = config.batch_size
        self.images: Mapping[str, np.ndarray] = {
            "image": np.zeros((rows, SIDE, SIDE, 1), np.uint8),
            "label": np.zeros(rows, np.int32),
            "weight": np.ones(rows, np.float32),
        }
        self.moments: list[Moment] = []  # at the beginning of each step
        shardings = jax.tree.map(lambda array: array.sharding, self.program.state)
        self.program = dataclasses.replace(
            self.program,
            train_step=jax.jit(
                idle_step,
                donate_argnums=0,
                keep_unused=True,
                out_shardings=(shardings, None),
            ),
        )

    def _batches(self, step: int) -> Generator[Batch]:
        while True:
            self.moments.append(now())
            yield shard_batch(self.mesh, self.images)

    def _validate(
        self, state: TrainState, step: int, interrupt: Interrupt
    ) -> tuple[dict[str, float], None]:
        return {f"validation_{name}": 0.0 for name in SUMS[:3]}, None


def idle_step(
    state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes and returns what `train_step` does, all parameters unchanged."""
    step = state.step + 1
    sums = {name: step.astype(jnp.float32) + i for i, name in enumerate(SUMS)}
    return dataclasses.replace(state, step=step), sums


def now() -> Moment:
    """Returns the time that has elapsed, and that of the main thread's work."""
    return time.perf_counter(), time.thread_time()


def seconds_between(moments: Sequence[Moment]) -> Moment:
    """Returns the seconds of a step, the least of moments a line of the log apart.

    What comes before the second line is left out, for it compiles and fills caches.
    """
    times = np.diff(np.array(moments[STEPS_PER_LINE::STEPS_PER_LINE]), axis=0)
    elapsed, computed = np.min(times, axis=0) / STEPS_PER_LINE
    return float(elapsed), float(computed)


def part_seconds(trainer: IdleTrainer) -> dict[str, Moment]:
    """Returns the seconds of each part of a step."""
    state = trainer.program.init(jax.random.key(0))
    key = jax.random.key(1)
    batch = shard_batch(trainer.mesh, trainer.images)

    train_step = CompiledStep(trainer.program, options={}, first_steps=0)

    def call_step() -> None:
        nonlocal state
        state, _ = train_step(0, state, batch, key)

    parts: dict[str, Callable[[], Any]] = {
        "putting the batch on the devices": lambda: shard_batch(
            trainer.mesh, trainer.images
        ),
        "setting the learning rate": lambda: set_learning_rate(state.opt_state, 0.1),
        "calling the compiled step": call_step,
    }
    seconds = {}
    for name, function in parts.items():
        moments = []
        for _ in range(STEPS_PER_LINE * REPETITIONS):
            moments.append(now())
            function()
        seconds[name] = seconds_between(moments)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the loop and prints the table."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.host",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="vgg16_bn")
    parser.add_argument("--steps", type=int, default=2000)
    record.add_flag(parser)
    values = parser.parse_args(arguments)
    measured = record.Record.begin(values.write)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw_noise(pictures)
        config = make_config(values.network, values.steps, pictures)
        trainer = IdleTrainer(config, f"{folder}/run")
        arrays = len(jax.tree.leaves(trainer.program.state))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.run()
        seconds = {"a step of the loop": seconds_between(trainer.moments)}
        seconds |= part_seconds(trainer)
    device = jax.devices()[0].device_kind
    print(
        f"{trainer.mesh.size} x {device}, jax {jax.__version__}, {values.network}, "
        f"{arrays} arrays of state, microseconds:\n"
    )
    print("| | elapsed | computed |")
    print("| --- | ---: | ---: |")
    for name, (elapsed, computed) in seconds.items():
        print(f"| {name} | {1e6 * elapsed:,.0f} | {1e6 * computed:,.0f} |", flush=True)
        measured.add(name=name, elapsed=elapsed, computed=computed)


if __name__ == "__main__":
    main()

"""The loop of section 3.1: step, log, validate, save, until the plateau ends it."""

import contextlib
import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.config import Config
from vgg_jax.data.pipeline import eval_batches, train_batches
from vgg_jax.data.sources import open_source
from vgg_jax.metrics import Sums, means
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoint import Checkpoints
from vgg_jax.training.interrupt import Interrupt
from vgg_jax.training.optimizer import Plateau, set_learning_rate
from vgg_jax.training.program import Program
from vgg_jax.training.schedule import Schedule
from vgg_jax.training.sharding import make_mesh, shard_batch
from vgg_jax.training.steps import TrainState
from vgg_jax.training.workdir import claim, write_class_names
from vgg_jax.training.writer import MetricWriter


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def train(config: Config, workdir: Path) -> signal.Signals | None:
    """Train until the rate's last plateau or `num_epochs`, whichever comes first.

    Where `workdir` holds a run of the same configuration, go on from its last
    checkpoint: the steps are those of an uninterrupted run, to the bit.

    Returns:
        None at the end; before it, the signal that stopped the run.

    Raises:
        WorkdirMismatch: the folder holds a run with other settings.
        TrainingDiverged: the message names the last good checkpoint.
        ValueError: settings that do not fit one another.
    """
    return Trainer(config, workdir).run()


class Trainer:
    """One run: its sources, its compiled steps, and the loop over them."""

    def __init__(self, config: Config, workdir: Path):
        self.config = config
        self.workdir = workdir
        self.metric = f"validation_{config.optimizer.metric}"
        self.mesh = make_mesh()
        self.program = Program.of(config, self.mesh)
        self._init_key, self._dropout_key = jax.random.split(
            jax.random.key(config.seed)
        )
        self.training = open_source(config.data, "train")
        self.validation = open_source(config.data, "validation")
        classes = len(self.training.class_names)
        if classes != config.model.num_classes:
            raise ValueError(
                f"expected as many classes as the data has, {classes}, got "
                f"model.num_classes={config.model.num_classes}"
            )
        self.schedule = Schedule.of(config, len(self.training))
        claim(workdir, config)
        write_class_names(workdir, self.training.class_names)

    def run(self) -> signal.Signals | None:
        """The loop; see `train`."""
        schedule = self.schedule
        with (
            Checkpoints(self.workdir, self.metric, read_only=False) as checkpoints,
            Interrupt() as interrupt,
        ):
            state, plateau = self._start(checkpoints)
            step = int(state.step)
            progress = Progress(schedule.total_steps, done=step)
            pending: list[Sums] = []
            stopped = None
            with (
                MetricWriter(self.workdir, step) as writer,
                contextlib.closing(self._batches(step)) as batches,
            ):
                while step < schedule.total_steps and not plateau.finished:
                    batch = shard_batch(self.mesh, next(batches))
                    state, sums = self.program.train_step(
                        state, batch, self._dropout_key
                    )
                    step += 1
                    pending.append(sums)
                    if len(pending) > 1:  # the host runs one step ahead of the devices
                        jax.block_until_ready(pending[-2])
                    if progress.starting:  # the first step's time is compilation
                        jax.block_until_ready(sums)
                        progress.skip(1)
                    stopped = interrupt.after(step)  # once: it can come at any moment
                    saves = schedule.saves(step) or stopped is not None
                    if saves or schedule.logs(step):
                        values = self._training_values(pending, step, checkpoints)
                        values["learning_rate"] = plateau.rate(self.config.optimizer)
                        values["images_per_second"] = (
                            progress.advance(step - progress.done) * schedule.batch_size
                        )
                        pending = []
                        writer.write(step, values)
                        self._print(step, values, progress)
                    errors = None
                    if schedule.validates(step):
                        errors = self._validate(state)
                        writer.write(step, errors | {"epoch": schedule.epoch(step)})
                        self._print(step, errors)
                        plateau.update(errors[self.metric], self.config.optimizer)
                        state = dataclasses.replace(
                            state,
                            opt_state=set_learning_rate(
                                state.opt_state, plateau.rate(self.config.optimizer)
                            ),
                        )
                    if saves:
                        checkpoints.save(state, plateau, errors)
                        progress.resume()  # the rate is that of training alone
                    if stopped is not None:
                        break
            checkpoints.wait()
            if stopped is not None:
                print(
                    f"stopped at step {step}, saved in {self.workdir}; "
                    "the same command goes on from there"
                )
            else:
                print(
                    f"finished at step {step}; lowest validation error at step "
                    f"{checkpoints.best_step}, in {self.workdir}"
                )
        return stopped

    def _start(self, checkpoints: Checkpoints) -> tuple[TrainState, Plateau]:
        """A new state, or the latest one saved."""
        latest = checkpoints.latest_step
        if latest is None:
            state, plateau = self.program.init(self._init_key), Plateau()
        else:
            state, plateau = checkpoints.restore(self.program.state, latest)
        parameters = sum(p.size for p in jax.tree.leaves(state.params))
        device = self.mesh.devices.flat[0]
        print(
            f"{self.config.model.name}: {parameters:,} parameters; "
            f"{len(self.training):,} images to train on, "
            f"{len(self.validation):,} to validate; "
            f"{self.mesh.size} x {device.device_kind}; "
            + (f"step {latest:,}" if latest else "from the start")
            + f" to {self.schedule.total_steps:,}",
            flush=True,
        )
        return state, plateau

    def _batches(self, step: int) -> Any:
        return train_batches(
            self.training,
            self.config.data,
            channels=self.config.model.in_channels,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _training_values(
        self, pending: list[Sums], step: int, checkpoints: Checkpoints
    ) -> dict[str, float]:
        """Means over the steps since the last line, checked to be numbers."""
        steps = jax.device_get(pending)
        norms = [float(sums.pop("gradient_norm")) for sums in steps]
        total = {name: np.sum([sums[name] for sums in steps]) for name in steps[0]}
        mean = means(total)
        if not math.isfinite(mean["loss"] + sum(norms)):
            checkpoints.wait()
            latest = checkpoints.latest_step
            raise TrainingDiverged(
                f"the loss or the gradient is not a finite number between steps "
                f"{step - len(steps) + 1} and {step} (loss {mean['loss']}); last good "
                f"checkpoint: {'none yet' if latest is None else f'step {latest}'} in "
                f"{self.workdir}. Try a lower optimizer.learning_rate or another "
                "model.init, in a new --workdir"
            )
        values = {
            "epoch": self.schedule.epoch(step),
            "train_loss": mean["loss"],
            "train_top1_error": mean["top1_error"],
            "gradient_norm": norms[-1],
        }
        skipped = len(steps) * self.config.batch_size - float(total["weight"])
        return values | ({"skipped_images": skipped} if skipped else {})

    def _validate(self, state: TrainState) -> dict[str, float]:
        """Loss and errors on the held-out images, centre crops."""
        size = self.config.evaluation.batch_size
        batches = eval_batches(
            self.validation,
            self.config.data,
            channels=self.config.model.in_channels,
            scale=self.config.evaluation.center_scale,
            crop=self.config.data.crop,
            batch_size=math.ceil(size / self.mesh.size) * self.mesh.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        steps = []
        for batch in batches:
            batch.pop("index")
            sharded = shard_batch(self.mesh, batch)
            steps.append(
                self.program.eval_step(state.params, state.batch_stats, sharded)
            )
        steps = jax.device_get(steps)
        total = {name: np.sum([sums[name] for sums in steps]) for name in steps[0]}
        return {f"validation_{name}": value for name, value in means(total).items()}

    def _print(
        self, step: int, values: dict[str, float], progress: Progress | None = None
    ) -> None:
        kind = "train" if progress else "validation"
        line = (
            f"step {step:,}/{self.schedule.total_steps:,}  "
            f"epoch {self.schedule.epoch(step):.2f}  {kind}: "
            f"loss {values[f'{kind}_loss']:.4f}  "
            f"top-1 error {values[f'{kind}_top1_error']:.2%}"
        )
        if progress:
            line += (
                f"  rate {values['learning_rate']:g}"
                f"  {values['images_per_second']:,.0f} images/s"
                f"  {progress.time_left()} left"
            )
        else:
            line += f"  top-5 error {values['validation_top5_error']:.2%}"
        print(line, flush=True)

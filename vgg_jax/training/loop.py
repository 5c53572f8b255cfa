"""The loop of section 3.1: step, log, validate, save, until the plateau ends it."""

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from vgg_jax import distributed
from vgg_jax.config import Config
from vgg_jax.console import Progress
from vgg_jax.data.color import load_axes
from vgg_jax.data.pipeline import eval_batches, train_batches
from vgg_jax.data.sources import open_source
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.training.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.diagnosis import StuckWatch, diagnosis
from vgg_jax.training.init_from import check_source, take_weights
from vgg_jax.training.interrupt import Interrupt
from vgg_jax.training.metrics import (
    MetricWriter,
    TrainingDiverged,
    summarize_training,
    summarize_validation,
)
from vgg_jax.training.objectives import Sums, task_of
from vgg_jax.training.optimizer import Plateau, set_learning_rate
from vgg_jax.training.program import Program
from vgg_jax.training.schedule import Schedule
from vgg_jax.training.steps import TrainState
from vgg_jax.training.workdir import (
    check_class_names,
    check_data,
    claim,
    mark_finished,
    write_class_names,
    write_data,
)


def train(config: Config, workdir: Path) -> signal.Signals | None:
    """Train until the rate's last plateau or `num_epochs`, whichever comes first.

    Where `workdir` holds a run of the same configuration, go on from its last
    checkpoint: the steps are those of an uninterrupted run, to the bit.

    Returns:
        None at the end; before it, the signal that stopped the run.

    Raises:
        WorkdirMismatch: the folder holds a run with other settings.
        TrainingDiverged: the message names the last good checkpoint.
        SaveError: a checkpoint could not be written.
        ValueError: settings that do not fit one another, or images that cannot be read.
    """
    return Trainer(config, workdir).run()


class Trainer:
    """One run: its sources, its compiled steps, and the loop over them."""

    def __init__(self, config: Config, workdir: Path):
        self.config = config
        self.workdir = workdir
        self.metric = f"validation_{config.optimizer.metric}"
        self.mesh = make_mesh()
        self.task = task_of(config)
        self.program = Program.of(config, self.mesh)
        self._init_key, self._dropout_key = jax.random.split(
            jax.random.key(config.seed)
        )
        if config.init_from is not None and not saved_steps(workdir):
            check_source(config, workdir)
        self.training = open_source(config.data, "train")
        self.validation = open_source(config.data, "validation")
        classes = len(self.training.class_names)
        outputs = self.task.outputs(classes)
        if outputs != config.model.num_classes:
            raise ValueError(
                f"expected model.num_classes={outputs}, for the data has {classes} "
                f"classes, got {config.model.num_classes}"
            )
        try:
            open_source(config.data, "test")
        except (OSError, ValueError) as error:
            _warn(f"nothing for eval.py to test on: {error}")
        self.schedule = Schedule.of(config, len(self.training))
        shifted = config.data.color_shift > 0
        facts = {
            "images to train on": len(self.training),
            "images to validate with": len(self.validation),
            "axes of the color shift": (
                load_axes(config.data).tolist() if shifted else None
            ),
        }
        if saved_steps(workdir):
            check_class_names(workdir, self.training.class_names)
            check_data(workdir, facts)
        claim(workdir, config)
        write_class_names(workdir, self.training.class_names)
        write_data(workdir, facts)

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
            watch = StuckWatch(self.config, schedule)
            if step < schedule.total_steps and not plateau.finished:
                mark_finished(self.workdir, False)
            pending: list[Sums] = []
            stopped = None
            with (
                _naming_the_last_good(checkpoints),
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
                        values = summarize_training(pending, step, schedule.batch_size)
                        values["epoch"] = schedule.epoch(step)
                        if watch.sees(len(pending), values["train_loss"]):
                            values["stuck"] = 1.0
                            _warn(diagnosis(self.config, watch, state, batch))
                        values["learning_rate"] = plateau.rate(self.config.optimizer)
                        values["images_per_second"] = (
                            progress.advance(step - progress.done) * schedule.batch_size
                        )
                        pending = []
                        writer.write(step, values)
                        self._print(step, values, progress)
                    errors = None
                    if schedule.validates(step):
                        errors = self._validate(state, step)
                        writer.write(step, errors | {"epoch": schedule.epoch(step)})
                        self._print(step, errors)
                        if schedule.decides(step):
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
                mark_finished(self.workdir, True)
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
            if self.config.init_from is not None:
                state = take_weights(state, self.config, self.workdir)
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
            with_boxes=self.task.with_boxes,
        )

    def _validate(self, state: TrainState, step: int) -> dict[str, float]:
        """Loss and errors on the held-out images, center crops."""
        size = self.config.evaluation.batch_size
        batches = eval_batches(
            self.validation,
            self.config.data,
            channels=self.config.model.in_channels,
            scale=self.config.evaluation.center_scale,
            crop=self.config.data.crop,
            with_boxes=self.task.with_boxes,
            batch_size=math.ceil(size / self.mesh.size) * self.mesh.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sums = []
        for batch in batches:
            batch.pop("index")
            sharded = shard_batch(self.mesh, batch)
            sums.append(
                self.program.eval_step(state.params, state.batch_stats, sharded)
            )
        return summarize_validation(sums, step)

    def _print(
        self, step: int, values: dict[str, float], progress: Progress | None = None
    ) -> None:
        kind = "train" if progress else "validation"
        line = (
            f"step {step:,}/{self.schedule.total_steps:,}  "
            f"epoch {self.schedule.epoch(step):.2f}  {kind}: "
            f"loss {values[f'{kind}_loss']:.4f}"
        )
        for name, readable in self.task.errors.items():
            if f"{kind}_{name}" in values:
                line += f"  {readable} {values[f'{kind}_{name}']:.2%}"
        if progress:
            line += (
                f"  rate {values['learning_rate']:g}"
                f"  {values['images_per_second']:,.0f} images/s"
                f"  {progress.time_left()} left"
            )
        print(line, flush=True)


def _warn(text: str) -> None:
    if distributed.is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _naming_the_last_good(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        yield
    except TrainingDiverged as error:
        checkpoints.wait()
        latest = checkpoints.latest_step
        raise TrainingDiverged(
            f"{error}; last good checkpoint: "
            f"{'none yet' if latest is None else f'step {latest}'}. Try a lower "
            "optimizer.learning_rate or another model.init, in a new --workdir"
        ) from error

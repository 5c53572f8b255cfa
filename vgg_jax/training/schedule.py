"""This module has the timetable of a run in steps, and the rate of each step."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from vgg_jax.config import Config, OptimizerConfig
from vgg_jax.console import did_you_mean


@dataclasses.dataclass(frozen=True)
class Timetable:
    """The steps after which a run logs, validates, saves and ends.

    Args:
        examples: the number of images of the training set.
        batch_size: the number of images of a step.
        num_epochs: the number of passes over the training set, at most.
        total_steps: the number of steps in `num_epochs`.
        validate_every_steps, checkpoint_every_steps, log_every_steps: the number of
            steps from one validation, checkpoint or line to the next.
        follows_plateau: whether the learning rate follows the validation error.
    """

    examples: int
    batch_size: int
    num_epochs: float
    total_steps: int
    validate_every_steps: int
    checkpoint_every_steps: int
    log_every_steps: int
    follows_plateau: bool

    @classmethod
    def for_config(cls, config: Config, examples: int) -> "Timetable":
        """Counts a configuration's epochs in steps, for so many training images.

        Section 3.1 counts both: 74 epochs of batches of 256 are 370K iterations.
        """
        steps_per_epoch = examples / config.batch_size
        return cls(
            examples=examples,
            batch_size=config.batch_size,
            num_epochs=config.num_epochs,
            total_steps=max(1, math.ceil(config.num_epochs * steps_per_epoch)),
            validate_every_steps=max(
                1, round(config.validate_every_epochs * steps_per_epoch)
            ),
            checkpoint_every_steps=config.checkpoint_every_steps,
            log_every_steps=config.log_every_steps,
            follows_plateau=schedule_for(config.optimizer).follows_plateau,
        )

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps of one pass over the training set, not rounded."""
        return self.examples / self.batch_size

    def epoch(self, step: int) -> float:
        """Returns how many passes over the training set the first `step` steps are."""
        return step * self.batch_size / self.examples

    def validates(self, step: int) -> bool:
        """Returns whether validation follows this step; it follows the last one too."""
        return step % self.validate_every_steps == 0 or step == self.total_steps

    def updates_plateau(self, step: int) -> bool:
        """Returns whether the plateau counts the validation that follows this step.

        It does not count an extra one after the last step, so that a run which goes on
        with more epochs is the run that had as many from the start.
        """
        return self.follows_plateau and step % self.validate_every_steps == 0

    def logs(self, step: int) -> bool:
        """Returns whether a line of training metrics follows this step."""
        return step % self.log_every_steps == 0 or self.saves(step)

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint follows this step."""
        return step % self.checkpoint_every_steps == 0 or self.validates(step)


@dataclasses.dataclass
class Plateau:
    """Counts validations without improvement, to lower the rate and to end the run.

    The paper: "decreased by a factor of 10 when the validation set accuracy stopped
    improving", three times in all; the plateau after the last fall ends the training.

    Args:
        best: the lowest validation error so far, a fraction.
        waited: the number of validations since that one.
        drops: the number of falls of the rate so far.
        finished: whether the plateau after the last fall has come.
    """

    best: float = float("inf")
    waited: int = 0
    drops: int = 0
    finished: bool = False

    def update(self, error: float, config: OptimizerConfig) -> None:
        """Counts one validation with this error, a fraction."""
        if error < self.best - config.plateau_min_delta:
            self.best = error
            self.waited = 0
            return
        self.waited += 1
        if self.waited >= config.plateau_patience:
            self.waited = 0
            if self.drops < config.plateau_drops:
                self.drops += 1
            else:
                self.finished = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """The place of a run before a step, as a schedule sees it.

    Args:
        epoch: the number of passes over the training set so far.
        num_epochs: the number of passes at the end of the run.
        drops: the number of falls of the rate that the run's `Plateau` has counted.
    """

    epoch: float
    num_epochs: float
    drops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A rule by which the learning rate changes during a run.

    Args:
        factor: (settings, position) -> what the first rate is multiplied by.
        follows_plateau: whether validation errors lower the rate, and end the run.
        depends_on_num_epochs: whether a run cannot go on with other `num_epochs`, for
            its first steps would have been others.
    """

    factor: Callable[[OptimizerConfig, Position], float]
    follows_plateau: bool = False
    depends_on_num_epochs: bool = False


def plateau_factor(config: OptimizerConfig, position: Position) -> float:
    """Lowers the rate where the validation error falls no longer (section 3.1)."""
    return config.plateau_factor**position.drops


def step_factor(config: OptimizerConfig, position: Position) -> float:
    """Lowers the rate every `step_epochs` epochs, as Caffe's policy "step" does."""
    falls = position.epoch / config.step_epochs
    return config.step_factor ** math.floor(round(falls, 9))  # 0.3 / 0.1 is below 3


def cosine_factor(config: OptimizerConfig, position: Position) -> float:
    """Lowers the rate to 0 along half a cosine after the warm-up (arXiv:1608.03983)."""
    annealed = max(0.0, position.epoch - config.warmup_epochs)
    length = max(position.num_epochs - config.warmup_epochs, annealed)
    return (1 + math.cos(math.pi * annealed / length)) / 2 if length else 1.0


def polynomial_factor(config: OptimizerConfig, position: Position) -> float:
    """Lowers the rate to 0 by a power of the share that is left, as Caffe's "poly"."""
    left = max(0.0, 1 - position.epoch / position.num_epochs)
    return left**config.polynomial_power


# The values of `optimizer.schedule`.
SCHEDULES: Mapping[str, Schedule] = {
    "plateau": Schedule(factor=plateau_factor, follows_plateau=True),
    "step": Schedule(factor=step_factor),
    "cosine": Schedule(factor=cosine_factor, depends_on_num_epochs=True),
    "polynomial": Schedule(factor=polynomial_factor, depends_on_num_epochs=True),
}


def schedule_for(config: OptimizerConfig) -> Schedule:
    """Returns the schedule that `config.schedule` names.

    Raises:
        ValueError: there is no such schedule; the message names the nearest.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"unknown optimizer.schedule {config.schedule!r}: "
            f"{did_you_mean(config.schedule, SCHEDULES)}"
        )
    return SCHEDULES[config.schedule]


def learning_rate_at(
    step: int, timetable: Timetable, plateau: Plateau, config: OptimizerConfig
) -> float:
    """Returns the learning rate of the update that follows `step` earlier ones.

    In the warm-up it is the schedule's own rate times the share of the warm-up that is
    over at the end of this step (arXiv:1706.02677, section 2.2).
    """
    position = Position(
        epoch=timetable.epoch(step),
        num_epochs=timetable.num_epochs,
        drops=plateau.drops,
    )
    rate = config.learning_rate * schedule_for(config).factor(config, position)
    epoch_after = timetable.epoch(step + 1)
    if epoch_after < config.warmup_epochs:
        rate *= epoch_after / config.warmup_epochs
    return rate

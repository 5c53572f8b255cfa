"""When a run logs, validates, saves and ends."""

import dataclasses
import math

from vgg_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A configuration's epochs as steps, for a training set of `examples` images."""

    examples: int
    batch_size: int
    total_steps: int
    validate_every_steps: int
    checkpoint_every_steps: int
    log_every_steps: int

    @classmethod
    def of(cls, config: Config, examples: int) -> "Schedule":
        """Section 3.1 counts both: 74 epochs of batches of 256 are 370K iterations."""
        steps_per_epoch = examples / config.batch_size
        return cls(
            examples=examples,
            batch_size=config.batch_size,
            total_steps=max(1, math.ceil(config.num_epochs * steps_per_epoch)),
            validate_every_steps=max(
                1, round(config.validate_every_epochs * steps_per_epoch)
            ),
            checkpoint_every_steps=config.checkpoint_every_steps,
            log_every_steps=config.log_every_steps,
        )

    def epoch(self, step: int) -> float:
        """Passes over the training set that the first `step` steps are."""
        return step * self.batch_size / self.examples

    def validates(self, step: int) -> bool:
        """Whether validation follows this step; it follows the last one too."""
        return self.decides(step) or step == self.total_steps

    def decides(self, step: int) -> bool:
        """Whether the plateau sees this step's validation.

        Not an extra one after the last step, so that a run which goes on with more
        epochs is the run that had as many from the start.
        """
        return step % self.validate_every_steps == 0

    def logs(self, step: int) -> bool:
        """Whether a line of training metrics follows this step."""
        return step % self.log_every_steps == 0 or self.saves(step)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return step % self.checkpoint_every_steps == 0 or self.validates(step)

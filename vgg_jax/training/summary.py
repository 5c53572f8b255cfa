"""The sums of steps as values of a run's metrics, checked to be what they seem."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from vgg_jax.metrics import Sums, means

# Of training, where the sums have them; validation shows all.
SHOWN = ("loss", "top1_error", "box_error")


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def summarise_training(
    sums: Sequence[Sums], last_step: int, batch_size: int
) -> dict[str, float]:
    """Means over the steps up to `last_step`, from what `train_step` gave.

    Raises:
        TrainingDiverged: the loss or a gradient is not a finite number.
        ValueError: no image could be decoded.
    """
    steps = jax.device_get(list(sums))
    span = f"steps {last_step - len(steps) + 1} to {last_step}"
    total = _add(steps, f"training image of {span}")
    mean = means(total)
    norms = [float(step["gradient_norm"]) for step in steps]
    if not math.isfinite(mean["loss"] + sum(norms)):
        raise TrainingDiverged(
            f"the loss or the gradient is not a finite number in {span} "
            f"(loss {mean['loss']})"
        )
    values = {
        **{f"train_{name}": mean[name] for name in SHOWN if name in mean},
        "gradient_norm": norms[-1],
    }
    skipped = len(steps) * batch_size - float(total["weight"])
    return values | ({"skipped_images": skipped} if skipped else {})


def summarise_validation(sums: Sequence[Sums], step: int) -> dict[str, float]:
    """Means over the batches of the validation after `step`, from `eval_step`'s sums.

    Raises:
        TrainingDiverged: the loss is not a finite number.
        ValueError: no image could be decoded.
    """
    mean = means(_add(jax.device_get(list(sums)), "validation image"))
    if not math.isfinite(mean["loss"]):
        raise TrainingDiverged(
            f"the validation loss after step {step} is not a finite number "
            f"({mean['loss']})"
        )
    return {f"validation_{name}": value for name, value in mean.items()}


def _add(steps: Sequence[Sums], what: str) -> Sums:
    total = {name: np.sum([sums[name] for sums in steps]) for name in steps[0]}
    if not total["weight"]:
        raise ValueError(
            f"no {what} could be decoded; look at the files that the warnings name "
            "(with data.on_corrupt_image=raise the first one stops the run)"
        )
    return total

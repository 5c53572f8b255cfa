"""What a network learns: classes (section 3.1) or where the object is (appendix A)."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from vgg_jax.config import Config
from vgg_jax.metrics import Sums, classification_sums, localisation_sums

Objective = Callable[[jax.Array, Mapping[str, jax.Array]], Sums]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What the loop has to know of it.

    Args:
        objective: (the network's outputs, batch) -> sums with "loss", which training
            lowers, each of `errors`, and "weight".
        errors: fractions among the sums with how to print them, the main one first.
        outputs: of the network, from the number of the data's classes.
        with_boxes: whether a batch holds boxes.
    """

    objective: Objective
    errors: Mapping[str, str]
    outputs: Callable[[int], int]
    with_boxes: bool


def _classes(outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
    return classification_sums(outputs, batch["label"], batch["weight"])


def _boxes(outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
    return localisation_sums(outputs, batch["label"], batch["box"], batch["weight"])


CLASSIFICATION = Task(
    objective=_classes,
    errors={"top1_error": "top-1 error", "top5_error": "top-5 error"},
    outputs=lambda classes: classes,
    with_boxes=False,
)
_PER_CLASS = Task(
    objective=_boxes,
    errors={"box_error": "box error"},
    outputs=lambda classes: 4 * classes,
    with_boxes=True,
)
LOCALISATION = {
    "pcr": _PER_CLASS,
    "scr": dataclasses.replace(_PER_CLASS, outputs=lambda classes: 4),
}


def task_of(config: Config) -> Task:
    """The task that a configuration's `localisation` says; `settings.check` before."""
    if config.localisation is None:
        return CLASSIFICATION
    return LOCALISATION[config.localisation.regression]

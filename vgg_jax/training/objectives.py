"""This module has the losses and errors of classification and localization.

They are those of section 3.1 and appendix A of arXiv:1409.1556. Both are sums with
weights: add them up over batches and devices, and divide once.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from vgg_jax import boxes
from vgg_jax.boxes import RIGHT_IOU, class_boxes
from vgg_jax.config import Config
from vgg_jax.inference.forward import Extras
from vgg_jax.models import ConvNet
from vgg_jax.models.network import class_scores

Sums = dict[str, jax.Array]


def classification_sums(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> Sums:
    """Sums cross-entropy (nats), top-1 and top-5 errors, and weights.

    logits [N, num_classes], labels int [N], weights [N] (0 leaves an example out) ->
    four float32 scalars: "loss", "top1_error", "top5_error", "weight".

    An example's rank is the number of classes that score at least as much as its own:
    ties count against the network, so constant scores are never right. A score that is
    not a number is an error.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rank = jnp.sum(~(logits < own), axis=1)
    return {
        "loss": jnp.sum(jnp.where(weights > 0, loss * weights, 0.0)),
        "top1_error": jnp.sum(weights * (rank > 1)),
        "top5_error": jnp.sum(weights * (rank > 5)),
        "weight": jnp.sum(weights),
    }


def localization_sums(
    outputs: jax.Array, labels: jax.Array, targets: jax.Array, weights: jax.Array
) -> Sums:
    """Sums the Euclidean loss, the boxes that are wrong, and the weights.

    See appendix A of arXiv:1409.1556. outputs [N, 4 * classes] or [N, 4], labels int
    [N], targets [N, 4] relative to the crop (`vgg_jax.boxes`), weights [N] -> three
    float32 scalars: "loss", "box_error", "weight".

    Only the box of an image's own class counts. The loss is half the squared distance,
    as Caffe's, and leaves out objects of which the crop shows less than half, as
    OverFeat does (arXiv:1312.6229, section 4.2).
    """
    predicted = class_boxes(outputs, labels[:, None])[:, 0]
    window = jnp.array([0.0, 0, 1, 1])
    is_visible = boxes.intersection(targets, window) >= boxes.area(targets) / 2
    loss = jnp.sum(jnp.square(predicted - targets), axis=1) / 2
    is_wrong = ~(boxes.iou(predicted, targets) > RIGHT_IOU)
    return {
        "loss": jnp.sum(jnp.where(is_visible & (weights > 0), loss * weights, 0.0)),
        "box_error": jnp.sum(weights * is_wrong),
        "weight": jnp.sum(weights),
    }


def means(sums: Sums) -> dict[str, float]:
    """Divides weighted sums, added up over batches, by their "weight".

    Without any weight the means are NaN.
    """
    weight = float(sums["weight"])
    return {
        name: float(total) / weight if weight else float("nan")
        for name, total in sums.items()
        if name != "weight"
    }


Objective = Callable[[jax.Array, Mapping[str, jax.Array]], Sums]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task that a network learns: its loss, its errors, and what they need.

    Args:
        objective: (the network's outputs, batch) -> sums with "loss", which training
            lowers, each of `errors`, and "weight".
        errors: names of fractions among the sums, each with a readable name; the main
            one comes first.
        num_outputs: number of the data's classes -> number of the network's outputs.
        with_boxes: whether a batch holds boxes.
    """

    objective: Objective
    errors: Mapping[str, str]
    num_outputs: Callable[[int], int]
    with_boxes: bool


@dataclasses.dataclass(frozen=True)
class ExampleMetrics:
    """The head that gives the sums of a task for each example alone.

    It takes "label" int [N], "weight" [N] and where boxes are learned "box" [N, 4].

    Args:
        objective: the objective of the task.
        with_boxes: whether the objective needs boxes.
        first_row: the number of the network's rows that have made what comes as images.
    """

    objective: Objective
    with_boxes: bool
    first_row: int = 0

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the arrays that the objective takes beside the outputs."""
        return ("label", "weight", *(["box"] * self.with_boxes))

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> Sums:
        """Computes each sum, [N], from normalized images [N, H, W, C]."""

        def metrics(output: jax.Array, example: dict[str, jax.Array]) -> Sums:
            one = {name: value[None] for name, value in example.items()}
            return self.objective(output[None], one)

        if self.first_row:
            outputs = class_scores(model.run(images, model.layers[self.first_row :]))
        else:
            outputs = model(images)
        return jax.vmap(metrics)(outputs, dict(extras))


def _classification_objective(
    outputs: jax.Array, batch: Mapping[str, jax.Array]
) -> Sums:
    return classification_sums(outputs, batch["label"], batch["weight"])


def _localization_objective(outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
    return localization_sums(outputs, batch["label"], batch["box"], batch["weight"])


CLASSIFICATION = Task(
    objective=_classification_objective,
    errors={"top1_error": "top-1 error", "top5_error": "top-5 error"},
    num_outputs=lambda classes: classes,
    with_boxes=False,
)
_PER_CLASS = Task(
    objective=_localization_objective,
    errors={"box_error": "box error"},
    num_outputs=lambda classes: 4 * classes,
    with_boxes=True,
)
LOCALIZATION = {
    "pcr": _PER_CLASS,
    "scr": dataclasses.replace(_PER_CLASS, num_outputs=lambda classes: 4),
}


def task_for(config: Config) -> Task:
    """Returns the task of a configuration that `vgg_jax.config.validate` accepts."""
    if config.localization is None:
        return CLASSIFICATION
    return LOCALIZATION[config.localization.regression]


def with_num_classes(config: Config, classes: int) -> Config:
    """Returns the configuration for data of so many classes.

    A `model.num_classes` of None becomes the number of outputs that its task needs.

    Raises:
        ValueError: `model.num_classes` is another number.
    """
    outputs = task_for(config).num_outputs(classes)
    if config.model.num_classes is None:
        model = dataclasses.replace(config.model, num_classes=outputs)
        return dataclasses.replace(config, model=model)
    if config.model.num_classes != outputs:
        raise ValueError(
            f"expected model.num_classes={outputs}, for the data has {classes} "
            f"classes, got {config.model.num_classes}; None takes the number from the "
            "data"
        )
    return config

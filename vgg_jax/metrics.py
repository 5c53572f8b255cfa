"""Loss and errors as sums with weights: add them up, divide once."""

import jax
import jax.numpy as jnp
import optax

from vgg_jax import boxes

# A box is right when its intersection over union with the true one is above this.
RIGHT_IOU = 0.5

Sums = dict[str, jax.Array]


def classification_sums(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> Sums:
    """Weighted sums of cross-entropy (nats), top-1 and top-5 errors, and weights.

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


def localisation_sums(
    outputs: jax.Array, labels: jax.Array, targets: jax.Array, weights: jax.Array
) -> Sums:
    """Weighted sums of the Euclidean loss, of boxes that are wrong, and of weights.

    Appendix A of arXiv:1409.1556. outputs [N, 4 * classes] or [N, 4], labels int [N],
    targets [N, 4] relative to the crop (`vgg_jax.boxes`), weights [N] -> three float32
    scalars: "loss", "box_error", "weight".

    Only the box of an image's own class counts. The loss is half the squared distance,
    as Caffe's, and leaves out objects of which the crop shows less than half, as
    OverFeat does (arXiv:1312.6229, section 4.2).
    """
    found = class_boxes(outputs, labels[:, None])[:, 0]
    window = jnp.array([0.0, 0, 1, 1])
    seen = boxes.intersection(targets, window) >= boxes.area(targets) / 2
    loss = jnp.sum(jnp.square(found - targets), axis=1) / 2
    wrong = ~(boxes.iou(found, targets) > RIGHT_IOU)
    return {
        "loss": jnp.sum(jnp.where(seen & (weights > 0), loss * weights, 0.0)),
        "box_error": jnp.sum(weights * wrong),
        "weight": jnp.sum(weights),
    }


def class_boxes(outputs: jax.Array, classes: jax.Array) -> jax.Array:
    """The boxes that a network predicts for some classes.

    outputs [..., 4 * num_classes], classes int [..., k] -> [..., k, 4]. Outputs of
    single-class regression, [..., 4], are the box of every class.
    """
    by_class = outputs.reshape(*outputs.shape[:-1], -1, 4)
    if by_class.shape[-2] == 1:
        classes = jnp.zeros_like(classes)
    return jnp.take_along_axis(by_class, classes[..., None], axis=-2)


def means(sums: Sums) -> dict[str, float]:
    """Sums as above, added over batches, as means per example."""
    weight = float(sums["weight"])
    return {
        name: float(total) / weight if weight else float("nan")
        for name, total in sums.items()
        if name != "weight"
    }

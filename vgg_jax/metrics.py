"""Loss and errors as sums with weights: add them up, divide once."""

import jax
import jax.numpy as jnp
import optax

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


def means(sums: Sums) -> dict[str, float]:
    """Sums of `classification_sums`, added over batches, as means per example."""
    weight = float(sums["weight"])
    return {
        name: float(total) / weight if weight else float("nan")
        for name, total in sums.items()
        if name != "weight"
    }

"""Learns digits from five pictures each, after letters: transfer in Flax Linen.

  python examples/transfer.py

`to_linen` makes a network a Linen module, whose variables are trees of plain arrays;
transfer is to put one tree into another. Here the first network learns from pictures
that are made. With published weights, the trees are those of
`nnx.state(create_model("vgg16", num_classes=None, weights="torchvision/vgg16"))`.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from made_pictures import letters

from vgg_jax.models.linen import to_linen
from vgg_jax.preprocessing import Normalization

NORMALIZE = Normalization(mean=(127.5,) * 3, std=(73.5,) * 3)
LETTERS, DIGITS, SIDE = "ABCDEFGHKLMNPRTUVWXY", "0123456789", 32


class Classifier(nn.Module):
    """A linear layer on pool5, averaged over space: [N, H, W, 3] -> [N, classes]."""

    num_classes: int
    width: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Normalizes pixels 0-255, and computes the scores before soft-max."""
        options = {"num_classes": None, "width": self.width, "init": "he"}
        backbone = to_linen("vgg11_bn", name="vgg", **options)
        features = backbone(NORMALIZE(images), train=train).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(features)


class TrainState(train_state.TrainState):
    """A state with the running statistics of batch normalization."""

    batch_stats: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
    """Takes one step of the cross-entropy."""

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        scores, updated = state.apply_fn(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return losses.mean(), updated["batch_stats"]

    gradient, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradient, batch_stats=batch_stats)


def fit(model: Classifier, variables: Any, data: Any, steps: int) -> TrainState:
    """Trains on batches of 32 that are drawn at random, at a rate that falls."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)
    images, labels = data
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(len(images), size=32)
        state = train_step(state, images[batch], labels[batch])
    return state


def main(steps: int = 400, width: float = 0.25) -> dict[str, float]:
    """Learns digits with and without letters before; returns the accuracy of both."""
    source, target = (Classifier(len(text), width) for text in (LETTERS, DIGITS))
    example = jnp.zeros((1, SIDE, SIDE, 3))
    fresh = jax.jit(source.init, static_argnames="train")
    start = fresh(jax.random.key(0), example, train=False)
    learned = fit(source, start, letters(LETTERS, 200, SIDE, seed=0), steps).variables

    fresh = jax.jit(target.init, static_argnames="train")
    start = fresh(jax.random.key(1), example, train=False)
    transferred = {
        collection: {**tree, "vgg": learned[collection]["vgg"]}
        for collection, tree in start.items()
    }
    few, (images, labels) = letters(DIGITS, 5, SIDE, 1), letters(DIGITS, 50, SIDE, 2)
    accuracy = {}
    for way, variables in (("from scratch", start), ("after letters", transferred)):
        state = fit(target, variables, few, steps // 8)
        scores = jax.jit(target.apply, static_argnames="train")(
            state.variables, images, train=False
        )
        accuracy[way] = float((scores.argmax(-1) == labels).mean())
        print(f"{accuracy[way]:6.1%} of unseen digits right, {way}", flush=True)
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    main(parser.parse_args().steps)

"""Learns digits from five pictures each, with features learned of letters: Flax Linen.

  python examples/transfer.py

`to_linen` makes a network a Linen module, whose parameters are a tree of plain arrays;
transfer is to put one tree into another. Here the first network learns from made
pictures. To start from published weights instead, the tree is
`nnx.to_pure_dict(nnx.state(create_model("vgg16", num_classes=None, weights=...)))`.
"""

import argparse
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from made_pictures import letters

from vgg_jax.models.linen import to_linen
from vgg_jax.preprocessing import Normalization

NORMALIZE = Normalization(mean=(127.5,) * 3, std=(73.5,) * 3)
LETTERS, DIGITS, SIDE = "ABCDEFGHJKLMNPQRTUVWXYZ", "0123456789", 32


class Classifier(nn.Module):
    """A linear layer on pool5, averaged over space: [N, H, W, 3] -> [N, classes]."""

    num_classes: int
    width: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalizes the pixels, 0-255, and computes the scores."""
        backbone = to_linen(
            "vgg11", num_classes=None, width=self.width, init="he", name="vgg"
        )
        features = backbone(NORMALIZE(images)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(features)


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> Any:
    """Takes one step of the cross-entropy; returns the new state and the loss."""

    def loss_fn(params: Any) -> jax.Array:
        scores = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradient), loss


def fit(state: TrainState, images: Any, labels: Any, steps: int) -> TrainState:
    """Trains on batches of 32 that are drawn at random."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(len(images), size=32)
        state, _ = train_step(state, images[batch], labels[batch])
    return state


def main(steps: int = 600, width: float = 0.25) -> dict[str, float]:
    """Compares three ways to learn the digits; returns the accuracy of each."""
    source, target = (Classifier(len(text), width) for text in (LETTERS, DIGITS))
    key, example = jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3))
    adam = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    start = functools.partial(TrainState.create, tx=adam)

    params = source.init(key, example)["params"]
    state = start(apply_fn=source.apply, params=params)
    learned = fit(state, *letters(LETTERS, 200, SIDE, seed=0), steps).params

    fresh = target.init(key, example)["params"]
    transferred = {"vgg": learned["vgg"], "head": fresh["head"]}
    rates = {"vgg": optax.set_to_zero(), "head": optax.adam(1e-2)}
    frozen = optax.multi_transform(rates, {"vgg": "vgg", "head": "head"})
    states = {
        "from scratch": start(apply_fn=target.apply, params=fresh),
        "frozen": start(apply_fn=target.apply, params=transferred, tx=frozen),
        "fine-tuned": start(apply_fn=target.apply, params=transferred),
    }
    few, (images, labels) = (
        letters(DIGITS, each, SIDE, seed) for each, seed in ((5, 1), (50, 2))
    )
    accuracy = {}
    for way, state in states.items():
        params = fit(state, *few, steps // 3).params
        scores = jax.jit(target.apply)({"params": params}, images)
        accuracy[way] = float((scores.argmax(-1) == labels).mean())
        print(f"{accuracy[way]:6.1%} of unseen digits right, {way}", flush=True)
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    main(parser.parse_args().steps)

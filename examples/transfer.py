"""Learns digits from five pictures each, after letters: transfer in Flax Linen.

  python examples/transfer.py

`to_linen` makes a network a Linen module, whose variables are trees of plain arrays;
transfer is to put a new last layer beside the tree of the others. Here the first
network learns from pictures that are made; published weights are the tree
`nnx.state(create_model("vgg16", num_classes=None, weights="torchvision/vgg16"))`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from made_pictures import letters

from vgg_jax.models.linen import to_linen
from vgg_jax.preprocessing import Normalization

NORMALIZE = Normalization(mean=(127.5,) * 3, std=(73.5,) * 3)
LETTERS, DIGITS, SIDE = "ABEFHKMRTX", "0123456789", 32
ADAM = optax.adam(1e-3)


class Classifier(nn.Module):
    """A linear layer on pool5, averaged over space: [N, H, W, 3] -> [N, classes]."""

    num_classes: int
    width: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Normalizes pixels 0-255, and computes the scores before soft-max."""
        options = {"num_classes": None, "width": self.width, "init": "he"}
        vgg = to_linen("vgg11_bn", name="vgg", **options)
        features = vgg(NORMALIZE(images), train=train).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(features)


@functools.partial(jax.jit, static_argnames="model")
def train_step(model: Classifier, variables: Any, state: Any, batch: Any) -> Any:
    """Takes one step of the cross-entropy; returns new variables and Adam's state."""
    images, labels = batch

    def loss_fn(params: Any) -> Any:
        trees, mutable = variables | {"params": params}, ["batch_stats"]
        scores, updated = model.apply(trees, images, train=True, mutable=mutable)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return losses.mean(), updated

    gradient, updated = jax.grad(loss_fn, has_aux=True)(variables["params"])
    updates, state = ADAM.update(gradient, state)
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **updated}, state


def fit(model: Classifier, variables: Any, data: Any, steps: int) -> Any:
    """Trains on batches of 32 drawn at random, and returns the new variables."""
    rng, state = np.random.default_rng(0), ADAM.init(variables["params"])
    for _ in range(steps):
        rows = rng.integers(len(data[0]), size=32)
        batch = tuple(array[rows] for array in data)
        variables, state = train_step(model, variables, state, batch)
    return variables


def main(steps: int = 400, width: float = 0.25) -> dict[str, float]:
    """Learns digits with and without letters before; returns the accuracy of both."""
    model = Classifier(len(DIGITS), width)
    fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    learned = fit(model, fresh, letters(LETTERS, 400, SIDE, seed=0), steps)
    new_head = jax.tree.map(jnp.zeros_like, fresh["params"]["head"])
    few, (images, labels) = letters(DIGITS, 5, SIDE, 1), letters(DIGITS, 50, SIDE, 2)
    accuracy, apply = {}, jax.jit(model.apply)
    for way, start in (("from scratch", fresh), ("after letters", learned)):
        params = start["params"] | {"head": new_head}
        variables = fit(model, start | {"params": params}, few, steps // 8)
        scores = apply(variables, images)
        accuracy[way] = float((scores.argmax(-1) == labels).mean())
        print(f"{accuracy[way]:6.1%} of unseen digits right, {way}", flush=True)
    return accuracy


if __name__ == "__main__":
    main()

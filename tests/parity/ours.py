"""What a network gives for images, as it is compared with another library's."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.models import ConvNet
from vgg_jax.models.network import class_scores


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a network gives for images.

    Args:
        maps: the outputs of layers by the names of this library's rows, [N, h, w, C].
        logits: [N, classes].
        image_gradient: the gradient of the score with respect to the images, [N, H, W,
            C]. The score is the sum of the logits times the weights that were given.
        kernel_gradient: its gradient with respect to the kernel of conv1_1, HWIO.
    """

    maps: dict[str, np.ndarray]
    logits: np.ndarray
    image_gradient: np.ndarray
    kernel_gradient: np.ndarray


def answer(
    model: ConvNet, images: np.ndarray, score_weights: np.ndarray, names: Sequence[str]
) -> Answers:
    """Runs a network forward, in evaluation, and backward.

    Args:
        model: the network.
        images: [N, H, W, 3].
        score_weights: what the logits are multiplied by to be the score, [N, classes].
        names: the rows whose maps are returned.
    """
    definition, kernel, rest = nnx.split(model, _is_first_kernel, ...)
    last = model.layers[-1].name
    maps, (image_gradient, kernel_gradient) = _run(
        definition, kernel, rest, (*names, last), images, score_weights
    )
    return Answers(
        {name: np.asarray(maps[name]) for name in names},
        np.asarray(class_scores(maps[last])),
        np.asarray(image_gradient),
        np.asarray(*jax.tree.leaves(kernel_gradient)),
    )


def _is_first_kernel(path: tuple[object, ...], value: object) -> bool:
    return path[:2] == ("conv1_1", "kernel")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(definition, kernel, rest, names, images, score_weights):
    def score(images, kernel):
        maps = nnx.merge(definition, kernel, rest).features(images, names)
        return jnp.sum(class_scores(maps[names[-1]]) * score_weights), maps

    gradient = jax.grad(score, argnums=(0, 1), has_aux=True)
    gradients, maps = gradient(images, kernel)
    return maps, gradients


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference over the largest value of theirs.

    Raises:
        ValueError: the shapes differ, or theirs are all zero, which compares nothing.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"expected arrays of {theirs.shape}, got {ours.shape}")
    largest = np.abs(theirs).max()
    if not largest > 0:
        raise ValueError("expected values to compare with, all are zero")
    return float(np.abs(ours - theirs).max() / largest)

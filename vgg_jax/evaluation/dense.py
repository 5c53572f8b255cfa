"""Dense evaluation: the network on the whole image (section 3.2 of arXiv:1409.1556)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.models import ConvNet
from vgg_jax.names import did_you_mean
from vgg_jax.training.steps import normalise

# Where the soft-max stands relative to the spatial mean, which the paper leaves open.
AVERAGINGS = ("score_map", "posteriors")


def check_averaging(averaging: str) -> None:
    """Raises: ValueError: not one of `AVERAGINGS`; the message names the nearest."""
    if averaging not in AVERAGINGS:
        raise ValueError(
            f"unknown averaging {averaging!r}: {did_you_mean(averaging, AVERAGINGS)}"
        )


def spatial_posteriors(scores: jax.Array, averaging: str) -> jax.Array:
    """One distribution from a class score map: [N, h, w, C] -> [N, C].

    "score_map": mean of the scores over space, then soft-max. "posteriors": soft-max of
    each cell, then their mean.

    Raises:
        ValueError: an unknown averaging.
    """
    check_averaging(averaging)
    if averaging == "score_map":
        return jax.nn.softmax(scores.mean(axis=(1, 2)))
    return jax.nn.softmax(scores).mean(axis=(1, 2))


def posteriors(
    model: ConvNet, images: jax.Array, *, averaging: str, flip: bool
) -> jax.Array:
    """Soft-max posteriors of one scale: [N, H, W, C] -> float32 [N, num_classes].

    Args:
        model: a classifier.
        images: normalised as its weights expect.
        averaging: one of `AVERAGINGS`.
        flip: average them with the posteriors of the images flipped left to right.

    Raises:
        ValueError: an unknown averaging, or images that do not fit the network.
    """
    found = spatial_posteriors(model.score_map(images), averaging)
    if flip:
        mirrored = model.score_map(images[:, :, ::-1])
        found = (found + spatial_posteriors(mirrored, averaging)) / 2
    return found


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std", "averaging"))
def _compiled(
    state: nnx.State,
    images: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    averaging: str,
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    images = normalise(images, mean, std)
    return posteriors(model, images, averaging=averaging, flip=True)


def dense_posteriors(
    model: ConvNet,
    image: np.ndarray,
    scales: Sequence[int] = (256, 384, 512),
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
    averaging: str = "score_map",
) -> jax.Array:
    """Section 3.2 for one image of any size: uint8 [H, W, C] -> float32 [num_classes].

    The image is rescaled so that its short side is each of `scales`; the network runs
    on the whole of it and on its mirror image; soft-max posteriors are averaged over
    both and over the scales. Each new shape compiles once.

    Args:
        model: a classifier.
        image: pixels 0-255.
        scales: short sides Q, in pixels.
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.
        averaging: "score_map", mean over space then soft-max; or "posteriors", soft-max
            of each cell then mean.

    Raises:
        ValueError: another kind of array, statistics for another number of channels, no
            scale, an unknown averaging, or a scale too small for the network.
    """
    # Here, so that importing vgg_jax does not import the decoders.
    from vgg_jax.data.transforms import rescale

    image = np.asarray(image)
    channels = model.in_channels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(
            f"expected an image uint8 [H, W, {channels}], got {image.dtype} "
            f"{list(image.shape)}"
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"expected {channels} values of mean and of std, one a channel, got "
            f"{len(mean)} and {len(std)}; pass those that the network was trained with"
        )
    if not scales:
        raise ValueError("expected at least one scale, got none")
    graphdef, state = nnx.split(model)
    found = [
        _compiled(
            state,
            rescale(image, scale)[None],
            graphdef=graphdef,
            mean=tuple(mean),
            std=tuple(std),
            averaging=averaging,
        )
        for scale in scales
    ]
    return jnp.mean(jnp.stack(found), axis=0)[0]

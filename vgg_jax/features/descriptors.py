"""Describes images by activations of a network, averaged over space and flips.

Appendix B of arXiv:1409.1556: the last fully-connected layer is left out, and the 4096
activations of relu7 describe the image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.console import did_you_mean
from vgg_jax.inference.dense import run_padded
from vgg_jax.inference.forward import Network, Pooled, validate_image, validate_scales
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Dropout
from vgg_jax.preprocessing import Normalization

# How the descriptors of several scales become one.
AGGREGATES = ("mean", "stack")


def descriptor(
    model: ConvNet,
    image: np.ndarray,
    scales: Sequence[int] = (256, 384, 512),
    aggregate: str = "mean",
    *,
    layer: str = "relu7",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> jax.Array:
    """Describes one image of any size: uint8 [H, W, C] -> float32 [D] of length 1.

    Appendix B of arXiv:1409.1556. The image is rescaled so that its short side is each
    of `scales`; the layer's map of the whole image is averaged over space and with that
    of the mirror image. Images are padded to a few shapes, so that they share programs.

    Args:
        model: a network with such a layer.
        image: pixels 0-255.
        scales: short sides Q, in pixels.
        aggregate: "mean" averages the scales, and D is the layer's number of channels;
            "stack" puts them one after another, and D is that number times the scales.
            Division by the length comes last, after either.
        layer: the name of the layer whose activations are taken; every VGG with the
            paper's head has "relu7".
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.

    Raises:
        ValueError: the network has no such layer, the aggregate is unknown, the image
            is another kind of array, or there is no scale or one too small for the
            network.
    """
    # Here, so that importing vgg_jax does not import the decoders.
    from vgg_jax.data.transforms import rescale

    validate_request(model, scales, aggregate, layer)
    image = np.asarray(image)
    validate_image(image, len(mean))
    network = Network.from_model(model, Normalization(mean, std))
    head = Pooled(layer=layer)
    by_scale = [
        run_padded(network, head, rescale(image, scale), scale) for scale in scales
    ]
    return combine_scales(by_scale, aggregate)[0]


def validate_request(
    model: ConvNet, scales: Sequence[int], aggregate: str, layer: str
) -> None:
    """Checks that descriptors can be made, before any work.

    Raises:
        ValueError: the network has no such layer, the aggregate is unknown, or there is
            no scale.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(
            f"unknown aggregate {aggregate!r}: {did_you_mean(aggregate, AGGREGATES)}"
        )
    validate_scales(scales)
    if layer not in {row.name for row in model.layers}:
        raise ValueError(
            f"this network has no layer {layer!r}; the last one before its classes is "
            f"{last_hidden(model)!r}"
        )


def last_hidden(model: ConvNet) -> str:
    """Returns the name of the layer before the classes: relu7 with the paper's head."""
    rows = [row for row in model.layers if not isinstance(row, Dropout)]
    last = max(i for i, row in enumerate(rows) if isinstance(row, Conv))
    return rows[last - 1].name


def combine_scales(
    by_scale: Sequence[jax.Array | np.ndarray], aggregate: str
) -> jax.Array:
    """Makes one descriptor of length 1 of each image's activations at several scales.

    Args:
        by_scale: [N, D] for each scale.
        aggregate: one of `AGGREGATES`.

    Returns:
        [N, D], or [N, scales * D] for "stack"; zeros where all activations are zero.
    """
    stacked = jnp.stack(by_scale, axis=1)
    if aggregate == "mean":
        combined = stacked.mean(axis=1)
    else:
        combined = stacked.reshape(len(stacked), -1)
    length = jnp.linalg.norm(combined, axis=1, keepdims=True)
    return combined / jnp.where(length > 0, length, 1)

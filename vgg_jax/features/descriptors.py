"""Descriptors of images: activations of a network, averaged over space and flips.

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
    """Appendix B for one image of any size: uint8 [H, W, C] -> float32 [D], length 1.

    The image is rescaled so that its short side is each of `scales`; the layer's map of
    the whole image is averaged over space and with that of the mirror image. Images
    are padded to a few shapes, so that they share programs.

    Args:
        model: a network with such a layer.
        image: pixels 0-255.
        scales: short sides Q, in pixels.
        aggregate: "mean" of the scales, D channels of the layer; or "stack", D that
            many a scale. Division by the length comes last, after either.
        layer: whose activations; every VGG with the paper's head has "relu7".
        mean: subtracted from the pixels, one value a channel.
        std: divides them after that, one value a channel.

    Raises:
        ValueError: no such layer, an unknown aggregate, another kind of array, no
            scale, or one too small for the network.
    """
    # Here, so that importing vgg_jax does not import the decoders.
    from vgg_jax.data.transforms import rescale

    validate_request(model, scales, aggregate, layer)
    image = np.asarray(image)
    validate_image(image, len(mean))
    network = Network.from_model(model, Normalization(mean, std))
    head = Pooled(layer=layer)
    of_scales = [
        run_padded(network, head, rescale(image, scale), scale) for scale in scales
    ]
    return combine(of_scales, aggregate)[0]


def validate_request(
    model: ConvNet, scales: Sequence[int], aggregate: str, layer: str
) -> None:
    """Checks that descriptors can be made, before any work.

    Raises:
        ValueError: no such layer, an unknown aggregate, or no scale.
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
    """The layer that the one of the classes sees: relu7 with the paper's head."""
    rows = [row for row in model.layers if not isinstance(row, Dropout)]
    last = max(i for i, row in enumerate(rows) if isinstance(row, Conv))
    return rows[last - 1].name


def combine(scales: Sequence[jax.Array | np.ndarray], aggregate: str) -> jax.Array:
    """One descriptor of length 1 from those of each scale: [N, D] each -> [N, D].

    "stack" gives [N, scales * D]. A descriptor of zeros stays one.
    """
    stacked = jnp.stack(scales, axis=1)
    if aggregate == "mean":
        combined = stacked.mean(axis=1)
    else:
        combined = stacked.reshape(len(stacked), -1)
    length = jnp.linalg.norm(combined, axis=1, keepdims=True)
    return combined / jnp.where(length > 0, length, 1)

"""Descriptors of images: activations of a network, averaged over space and flips.

Appendix B of arXiv:1409.1556: the last fully-connected layer is left out, and the 4096
activations of relu7 describe the image.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.console import did_you_mean
from vgg_jax.evaluation.dense import check_scales, mirror
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Dropout, inside, output_sizes
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
    the whole image is averaged over space and with that of the mirror image. Each new
    shape compiles once.

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

    check(model, scales, aggregate, layer)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != len(mean):
        raise ValueError(
            f"expected an image uint8 [H, W, {len(mean)}], as mean has values, got "
            f"{image.dtype} {list(image.shape)}"
        )
    graphdef, state = nnx.split(model)
    found = [
        pooled(
            state,
            rescale(image, scale)[None],
            None,
            graphdef=graphdef,
            layer=layer,
            mean=tuple(mean),
            std=tuple(std),
        )
        for scale in scales
    ]
    return combine(found, aggregate)[0]


def check(model: ConvNet, scales: Sequence[int], aggregate: str, layer: str) -> None:
    """That descriptors can be made, before any work.

    Raises:
        ValueError: no such layer, an unknown aggregate, or no scale.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(
            f"unknown aggregate {aggregate!r}: {did_you_mean(aggregate, AGGREGATES)}"
        )
    check_scales(scales)
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


@functools.partial(jax.jit, static_argnames=("graphdef", "layer", "mean", "std"))
def pooled(
    state: nnx.State,
    images: jax.Array,
    sizes: jax.Array | None,
    *,
    graphdef: nnx.GraphDef,
    layer: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Activations averaged over space and flips: [N, H, W, C] -> float32 [N, D].

    Args:
        state, graphdef: of the network, from `nnx.split`.
        images: pixels 0-255.
        sizes: int32 [N, 2], height and width of each image without its padding; None
            where there is none.
        layer: whose activations.
        mean, std: as `normalize`.
    """
    model = nnx.merge(graphdef, state)
    # A network that ends in this layer, whose map takes sizes as a score map does.
    model.layers = model.layers[: [row.name for row in model.layers].index(layer) + 1]
    images = Normalization(mean, std)(images)
    cells = None if sizes is None else output_sizes(model.layers, sizes)

    def of(images: jax.Array) -> jax.Array:
        found = model.score_map(images, sizes=sizes)
        there = None if cells is None else inside(found.shape, cells)
        return found.mean(axis=(1, 2), where=there)

    return (of(images) + of(mirror(images, sizes))) / 2


def combine(scales: Sequence[jax.Array | np.ndarray], aggregate: str) -> jax.Array:
    """One descriptor of length 1 from those of each scale: [N, D] each -> [N, D].

    "stack" gives [N, scales * D]. A descriptor of zeros stays one.
    """
    stacked = jnp.stack(scales, axis=1)
    if aggregate == "mean":
        found = stacked.mean(axis=1)
    else:
        found = stacked.reshape(len(stacked), -1)
    length = jnp.linalg.norm(found, axis=1, keepdims=True)
    return found / jnp.where(length > 0, length, 1)

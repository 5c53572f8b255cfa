"""This module knows where weights come from by their values, and what images they want.

The same layers circulate in several orders of axes and of color channels, and the name
of a file does not tell which. The first filters of known weights do.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vgg_jax.console import did_you_mean
from vgg_jax.preprocessing import Normalization

# The orders of color channels that files have.
CHANNELS = ("RGB", "BGR")
# Formats whose networks take RGB as often as BGR: neither can be supposed.
FORMATS_OF_BOTH_ORDERS = ("keras", "caffe", "matconvnet")

# torchvision and those who took its weights scale pixels to 0-1 first.
TORCHVISION = Normalization(
    mean=tuple(255 * m for m in (0.485, 0.456, 0.406)),
    std=tuple(255 * s for s in (0.229, 0.224, 0.225)),
)
# The mean color of ImageNet that the authors of VGG published with their weights.
OXFORD = Normalization(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0))
# The mean of Caffe's imagenet_mean.binaryproto, which the zoo's networks subtract.
CAFFE_ZOO = Normalization(mean=(122.67892, 116.66877, 104.00699), std=(1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lineage:
    """Weights that were trained once and are now in files of many formats.

    Args:
        normalization: what the network's authors do to RGB pixels 0-255; None where
            that depends on the network.
        channels: the order of the color channels in the authors' files.
        first_filter: of weights whose values are known: some of those of the first
            convolution's first filter, by (row, column, channel of R, G, B).
        bias: the first of that layer's biases.
    """

    normalization: Normalization | None
    channels: str
    first_filter: Mapping[tuple[int, int, int], float] = dataclasses.field(
        default_factory=dict
    )
    bias: tuple[float, ...] = ()


# A name is what `source` asserts, and what `Loaded.lineage` says.
LINEAGES: dict[str, Lineage] = {
    # IMAGENET1K_V1 of VGG-16.
    "torchvision": Lineage(
        normalization=TORCHVISION,
        channels="RGB",
        first_filter={
            (0, 0, 0): -0.5537,
            (0, 1, 0): 0.1427,
            (0, 2, 0): 0.5290,
            (1, 0, 0): -0.5831,
            (1, 1, 0): 0.3566,
            (1, 2, 0): 0.7657,
            (2, 0, 0): -0.6902,
            (2, 1, 0): -0.0480,
            (2, 2, 0): 0.4841,
            (0, 0, 1): 0.1755,
            (0, 1, 1): 0.0099,
            (0, 2, 1): -0.0814,
            (0, 0, 2): 0.3130,
            (0, 1, 2): -0.1659,
            (0, 2, 2): -0.4275,
        },
        bias=(0.4034, 0.3778, 0.4644),
    ),
    # VGG_ILSVRC_16_layers of the authors, which Keras has as well.
    "oxford": Lineage(
        normalization=OXFORD,
        channels="BGR",
        first_filter={
            (0, 0, 2): 0.42947,
            (0, 1, 2): 0.37347,
            (0, 2, 2): -0.06136,
            (1, 0, 2): 0.27477,
            (1, 1, 2): 0.03868,
            (1, 2, 2): -0.36722,
            (2, 0, 2): -0.05747,
            (2, 1, 2): -0.26225,
            (2, 2, 2): -0.35010,
            (0, 0, 1): 0.55038,
            (0, 1, 1): 0.44007,
            (0, 2, 1): -0.08139,
            (0, 0, 0): 0.48002,
            (0, 1, 0): 0.40855,
            (0, 2, 0): -0.06515,
        },
        bias=(0.73430, 0.09340, 0.06776, 0.88630),
    ),
    "caffe": Lineage(normalization=CAFFE_ZOO, channels="BGR"),
    "vgg_jax": Lineage(normalization=None, channels="RGB"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of weights: whose they are, and in which order they lie in a file.

    Args:
        lineage: a key of `LINEAGES`; None where nothing tells it.
        channels: "RGB" or "BGR", the order of the color channels; None where nothing
            tells it.
        transposed: whether rows and columns of all kernels are exchanged.
        evidence: a sentence about how this is known.
    """

    lineage: str | None
    channels: str | None
    transposed: bool
    evidence: str


def recognize(kernel: np.ndarray, bias: np.ndarray | None) -> Origin | None:
    """Compares the first convolution with those of known weights, in every order.

    Args:
        kernel: [h, w, in, out], as the file has it but for the order of its axes.
        bias: [out].

    Returns:
        Where they come from, or None where they are not known.
    """
    if kernel.ndim != 4 or kernel.shape[:3] != (3, 3, 3):
        return None
    for name, lineage in LINEAGES.items():
        for channels in CHANNELS:
            for transposed in (False, True):
                # Half precision keeps three digits.
                if lineage.first_filter and _equal(
                    _in_order(kernel, channels, transposed), bias, lineage, 2e-3
                ):
                    order = channels + (", rows and columns exchanged" * transposed)
                    return Origin(
                        lineage=name,
                        channels=channels,
                        transposed=transposed,
                        evidence=f"the first filter has the values of {name}, {order}",
                    )
    return None


def exchange_red_and_blue(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Turns RGB into BGR, and back.

    Channels behind the first three, such as depth or opacity, stay where they are.

    Args:
        values: what has color channels; fewer than three are no colors and stay.
        axis: the axis of the channels.
    """
    order = np.arange(values.shape[axis])
    if len(order) >= 3:
        order[[0, 2]] = order[[2, 0]]
    return np.take(values, order, axis)


def channels_of_mean(mean: tuple[float, ...] | None) -> str | None:
    """Tells the order of the color channels by the mean color of ImageNet.

    Args:
        mean: what is to be subtracted from the pixels 0-255 of each channel.

    Returns:
        "RGB" or "BGR"; None for another mean.
    """
    for channels, known in (("RGB", OXFORD.mean), ("BGR", OXFORD.mean[::-1])):
        if mean is not None and len(mean) == 3 and np.allclose(mean, known, atol=3):
            return channels
    return None


def assert_source(source: str) -> Lineage:
    """Returns the lineage of a name that a user gave.

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """
    if source not in LINEAGES:
        raise ValueError(
            f"unknown source of weights {source!r}: {did_you_mean(source, LINEAGES)}"
        )
    return LINEAGES[source]


def validate_channels(channels: str) -> None:
    """Checks an order of channels that a user gave.

    Raises:
        ValueError: neither RGB nor BGR.
    """
    if channels not in CHANNELS:
        raise ValueError(
            f"unknown channels {channels!r}: {did_you_mean(channels, CHANNELS)}"
        )


def _in_order(kernel: np.ndarray, channels: str, transposed: bool) -> np.ndarray:
    kernel = kernel.swapaxes(0, 1) if transposed else kernel
    return exchange_red_and_blue(kernel, 2) if channels == "BGR" else kernel


def _equal(
    kernel: np.ndarray, bias: np.ndarray | None, lineage: Lineage, tolerance: float
) -> bool:
    """Returns whether a first convolution, in RGB, has the known values."""
    known = lineage.first_filter
    pairs = [(float(kernel[*place, 0]), value) for place, value in known.items()]
    if bias is not None:
        pairs += zip(map(float, bias), lineage.bias, strict=False)
    return all(abs(found - value) <= tolerance for found, value in pairs)

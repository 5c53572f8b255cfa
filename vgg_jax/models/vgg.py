"""This module makes VGG (Simonyan & Zisserman, arXiv:1409.1556, Table 1)."""

import math
from typing import Any

from vgg_jax.console import did_you_mean
from vgg_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    FullyConnected,
    Layer,
    LocalResponseNorm,
    MaxPool,
    Relu,
)
from vgg_jax.models.network import ConvNet

Stages = tuple[tuple[int, ...], ...]

# Table 1: the kernel sizes of each stage. Every stage ends in a 2x2 max pool.
STAGES: dict[str, Stages] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
WIDTHS = (64, 128, 256, 512, 512)
HEADS = ("paper", "global_pool")

# A-LRN's normalization; Caffe divides alpha by the window and starts from 1.
LRN = {
    "krizhevsky": LocalResponseNorm("norm1", size=5, alpha=1e-4, beta=0.75, k=2.0),
    "caffe": LocalResponseNorm("norm1", size=5, alpha=1e-4 / 5, beta=0.75, k=1.0),
}


def scaled(channels: int, width: float) -> int:
    """Returns a hidden layer's channels under a width multiplier, at least one.

    Raises:
        ValueError: `channels` or `width` is not a number above zero.
    """
    if not (channels > 0 and 0 < width < math.inf):
        raise ValueError(
            f"expected channels and a width multiplier above 0, got {channels} "
            f"channels and width {width}"
        )
    return max(1, round(channels * width))


def vgg(
    stages: Stages,
    *,
    num_classes: int | None = 1000,
    width: float = 1.0,
    dropout: float = 0.5,
    head: str = "paper",
    fc_features: int = 4096,
    fc_kernel: int = 7,
    ceil_mode: bool = False,
    batch_norm: bool | None = False,
    lrn: str | None = None,
    **network: Any,
) -> ConvNet:
    """Returns a network of Table 1; see `ConvNet` for what it computes.

    Parameters are `conv1_1` ... `conv5_4`, `bn1_1` ..., `fc6`, `fc7`, `fc8`;
    intermediates also `relu1_1`, `norm1`, `pool1`, `relu6`, `relu7`.

    Args:
        stages: kernel sizes, a value of `STAGES`.
        num_classes: None leaves the head out; the output is then `pool5`.
        width: multiplies the channels of every hidden layer.
        dropout: rate after relu6 and relu7 (before fc8 in the global_pool head).
        head: "paper", three fully-connected layers; or "global_pool", one, whose score
            map is averaged over space.
        fc_features: units of fc6 and fc7.
        fc_kernel: side of the pool5 map that fc6 sees at the training size: 7 at 224,
            1 at 32.
        ceil_mode: pools round up, as Caffe's do: 28x28 then survives five pools. Sizes
            that are multiples of 32 are the same either way.
        batch_norm: batch normalization between each convolution and its ReLU.
        lrn: A-LRN's normalization, a key of `LRN`; None for none.
        **network: in_channels, init, dtype, rngs and keep_rngs, as `ConvNet`.

    Raises:
        ValueError: an unknown head, lrn or init; the message names the nearest.
    """
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}: {did_you_mean(head, HEADS)}")
    if lrn is not None and lrn not in LRN:
        raise ValueError(f"unknown lrn {lrn!r}: {did_you_mean(lrn, LRN)}")
    if fc_kernel < 1:
        raise ValueError(f"expected an fc_kernel of at least 1, got {fc_kernel}")
    layers: list[Layer] = []
    for stage, (kernels, channels) in enumerate(zip(stages, WIDTHS, strict=True), 1):
        for i, kernel in enumerate(kernels, 1):
            place = f"{stage}_{i}"
            features = scaled(channels, width)
            layers.append(Conv(f"conv{place}", features, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(BatchNorm(f"bn{place}"))
            layers.append(Relu(f"relu{place}"))
            if lrn is not None and (stage, i) == (1, 1):
                layers.append(LRN[lrn])
        layers.append(MaxPool(f"pool{stage}", window=2, stride=2, ceil_mode=ceil_mode))
    if num_classes is not None:
        if head == "paper":
            hidden = scaled(fc_features, width)
            for fc, kernel in ((6, fc_kernel), (7, 1)):
                layers += [
                    FullyConnected(f"fc{fc}", hidden, kernel),
                    Relu(f"relu{fc}"),
                    Dropout(f"drop{fc}", dropout),
                ]
        else:
            layers.append(Dropout("drop5", dropout))
        layers.append(FullyConnected("fc8", num_classes, 1))
    return ConvNet(layers, num_classes=num_classes, **network)

"""This module makes Network in Network (Lin, Chen & Yan, arXiv:1312.4400)."""

import dataclasses
from typing import Any

from vgg_jax.models.layers import (
    AveragePool,
    Conv,
    Dropout,
    Layer,
    MaxPool,
    Pool,
    Relu,
)
from vgg_jax.models.network import ConvNet
from vgg_jax.models.vgg import scaled


@dataclasses.dataclass(frozen=True)
class Block:
    """A convolution and two 1x1 convolutions, each with ReLU, then pool and dropout.

    A width of None stands for `num_classes`.
    """

    kernel: int
    stride: int
    padding: int
    widths: tuple[int | None, int | None, int | None]
    pool: Pool | None = None
    drop: str | None = None


# The Caffe zoo's ImageNet network: 54, 27, 13, 6 at 224.
IMAGENET = (
    Block(11, 4, 0, (96, 96, 96), MaxPool("pool1", 3, 2, ceil_mode=True)),
    Block(5, 1, 2, (256, 256, 256), MaxPool("pool2", 3, 2, ceil_mode=True)),
    Block(3, 1, 1, (384, 384, 384), MaxPool("pool3", 3, 2, ceil_mode=True), "drop3"),
    Block(3, 1, 1, (1024, 1024, None)),
)
CIFAR = (
    Block(5, 1, 2, (192, 160, 96), MaxPool("pool1", 3, 2, ceil_mode=True), "drop1"),
    Block(
        5, 1, 2, (192, 192, 192), AveragePool("pool2", 3, 2, ceil_mode=True), "drop2"
    ),
    Block(3, 1, 1, (192, 192, None)),
)
# The tutorial's Fashion-MNIST network: floor pools, 54, 26, 12, 5 at 224.
TUTORIAL = (
    Block(11, 4, 0, (96, 96, 96), MaxPool("pool1", 3, 2, ceil_mode=False)),
    Block(5, 1, 2, (256, 256, 256), MaxPool("pool2", 3, 2, ceil_mode=False)),
    Block(3, 1, 1, (384, 384, 384), MaxPool("pool3", 3, 2, ceil_mode=False), "drop3"),
    Block(3, 1, 1, (None, None, None)),
)


def nin(
    blocks: tuple[Block, ...],
    *,
    num_classes: int | None = 1000,
    width: float = 1.0,
    dropout: float = 0.5,
    final_relu: bool | None = False,
    **network: Any,
) -> ConvNet:
    """Returns a Network in Network; its score map holds the class activation maps.

    Parameters are `conv1`, `cccp1`, `cccp2`, `conv2` ...: cccp, "cascaded cross-channel
    parametric pooling", is the 1x1 convolution. Intermediates also `relu_conv1`,
    `pool1`.

    Args:
        blocks: `IMAGENET`, `CIFAR` or `TUTORIAL`.
        num_classes: None leaves the last block out; the output is then the last pool's.
        width: multiplies the channels of every hidden layer.
        dropout: rate before the last block (after each pool in `CIFAR`).
        final_relu: a ReLU on the scores, as the tutorial has; it stops the gradient of
            every class whose scores are all negative.
        **network: in_channels, init, dtype, rngs and keep_rngs, as `ConvNet`.

    Raises:
        ValueError: an unknown init; the message names the nearest.
    """
    if num_classes is None:
        blocks = blocks[:-1]
    layers: list[Layer] = []
    for i, block in enumerate(blocks, 1):
        names = (f"conv{i}", f"cccp{2 * i - 1}", f"cccp{2 * i}")
        for name, channels in zip(names, block.widths, strict=True):
            if channels is not None:
                channels = scaled(channels, width)
            elif num_classes is not None:
                channels = num_classes
            else:
                raise ValueError("only the last block may be as wide as num_classes")
            layers.append(
                Conv(name, channels, block.kernel, block.stride, block.padding)
                if name.startswith("conv")
                else Conv(name, channels, kernel=1)
            )
            layers.append(Relu(f"relu_{name}"))
        if block.pool is not None:
            layers.append(block.pool)
        if block.drop is not None:
            layers.append(Dropout(block.drop, dropout))
    if num_classes is None:
        layers = [layer for layer in layers if not isinstance(layer, Dropout)]
    elif not final_relu:
        layers.pop()
    return ConvNet(layers, num_classes=num_classes, **network)

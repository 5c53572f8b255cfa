"""Why 3x3: stacks of small convolutions against one large one (section 2.3)."""

import dataclasses
from collections.abc import Sequence

from vgg_jax.console import format_columns
from vgg_jax.models.layers import Conv, Layer, Relu
from vgg_jax.models.measure import MEBIBYTE, summary

STACKS = ((2, 3), (1, 5), (3, 3), (1, 7))  # convolutions, kernel: two pairs


@dataclasses.dataclass(frozen=True)
class Stack:
    """Convolutions in a row, each with a ReLU, from C channels to C."""

    convolutions: int  # each followed by a ReLU
    kernel: int
    receptive_field: int
    weights: int  # biases left out, as the paper does
    weights_per_c2: int  # weights / C^2: 18, 25, 27, 49
    activations: int
    activation_bytes: int  # in float32
    multiply_adds: int


def compare_stacks(channels: int = 256, image_size: int = 56) -> tuple[Stack, ...]:
    """Two 3x3 convolutions against one 5x5, and three against one 7x7.

    Equal receptive fields and more ReLUs for fewer weights and multiply-adds; the price
    is a map to keep for each convolution. The defaults are VGG's third stage at 224.

    Args:
        channels: C, of the input and of every convolution.
        image_size: side in pixels of the map that the stack works on.

    Raises:
        ValueError: no channels or no pixels.
    """
    if channels < 1:
        raise ValueError(f"expected at least one channel, got {channels}")
    stacks = []
    for count, kernel in STACKS:
        layers: list[Layer] = []
        for i in range(1, count + 1):
            layers.append(Conv(f"conv{i}", channels, kernel, padding=kernel // 2))
            layers.append(Relu(f"relu{i}"))
        measured = summary(layers, image_size, in_channels=channels)
        stacks.append(
            Stack(
                convolutions=count,
                kernel=kernel,
                receptive_field=measured.layers[-1].receptive_field,
                weights=measured.weights,
                weights_per_c2=measured.weights // channels**2,
                activations=measured.activations,
                activation_bytes=measured.activation_bytes,
                multiply_adds=measured.multiply_adds,
            )
        )
    return tuple(stacks)


def format_stacks(stacks: Sequence[Stack]) -> str:
    """The comparison as a table."""
    return format_columns(
        [
            "stack",
            "field",
            "ReLUs",
            "weights",
            "",
            "activations",
            "MiB",
            "multiply-adds",
        ],
        [
            [
                f"{stack.convolutions} x {stack.kernel}x{stack.kernel}",
                str(stack.receptive_field),
                str(stack.convolutions),
                f"{stack.weights_per_c2} C^2",
                f"{stack.weights:,}",
                f"{stack.activations:,}",
                f"{stack.activation_bytes / MEBIBYTE:.2f}",
                f"{stack.multiply_adds:,}",
            ]
            for stack in stacks
        ],
    )

"""Prints tables of a network, layer by layer, or of stacks of convolutions.

  python -m vgg_jax.tools.summary vgg16 --size 384
  python -m vgg_jax.tools.summary --compare

The first has kernel, stride, jump, receptive field, output, parameters, activations and
multiply-adds of each layer for one image. The second sets stacks of 3x3 convolutions
against one of 5x5 and one of 7x7 (section 2.3 of arXiv:1409.1556). No weights are made
and no accelerator is touched.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from vgg_jax import cli
from vgg_jax.config import NiNConfig, VGGConfig
from vgg_jax.config_file import add_setting
from vgg_jax.console import did_you_mean, format_columns
from vgg_jax.models import MODELS, option_names
from vgg_jax.models.layers import Conv, Layer, Relu
from vgg_jax.models.measure import MEBIBYTE, summary

STACKS = ((2, 3), (1, 5), (3, 3), (1, 7))  # convolutions, kernel: two pairs


@dataclasses.dataclass(frozen=True)
class Stack:
    """What convolutions in a row cost, each from C channels to C and with a ReLU.

    Args:
        convolutions: how many there are, and as many ReLUs.
        kernel: the side of each kernel.
        receptive_field: the side of what an output sees, in pixels of the input.
        weights: how many there are without biases, as the paper counts.
        weights_per_c2: the weights over C^2: 18, 25, 27 or 49.
        activations: how many numbers the layers give.
        activation_bytes: their size in float32.
        multiply_adds: how many the convolutions take.
    """

    convolutions: int
    kernel: int
    receptive_field: int
    weights: int
    weights_per_c2: int
    activations: int
    activation_bytes: int
    multiply_adds: int


def compare_stacks(channels: int = 256, image_size: int = 56) -> tuple[Stack, ...]:
    """Measures two 3x3 convolutions against one 5x5, and three against one 7x7.

    Equal receptive fields and more ReLUs for fewer weights and multiply-adds; the price
    is a map to keep for each convolution. The defaults are VGG's third stage at 224.

    Args:
        channels: C, the channels of the input and of every convolution.
        image_size: side in pixels of the map that the stack works on.

    Raises:
        ValueError: `channels` or `image_size` is below one.
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
    """Returns the comparison as a table, a line a stack."""
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


def _size(text: str) -> tuple[int, int]:
    height, by, width = text.partition("x")
    try:
        return cli.positive(height), cli.positive(width if by else height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected pixels, as 384 or 384x512, got {text!r}"
        ) from None


# Keywords of create_model that change a table: settings of either kind of network.
OPTIONS: dict[str, type] = {
    **dict.fromkeys(("num_classes", "in_channels", "width", "dtype"), VGGConfig),
    **dict.fromkeys(("head", "fc_features", "fc_kernel", "ceil_mode"), VGGConfig),
    **dict.fromkeys(("batch_norm", "lrn"), VGGConfig),
    "final_relu": NiNConfig,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.tools.summary", __doc__)
    parser.add_argument(
        "network",
        nargs="?",
        type=cli.one_of(MODELS),
        metavar="NETWORK",
        help=f"one of {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=224,
        metavar="HxW",
        help="pixels, as 384 or 384x512; 224 by default",
    )
    parser.add_argument("--json", action="store_true", help="every number, as JSON")
    parser.add_argument(
        "--compare", action="store_true", help="3x3 stacks against 5x5 and 7x7"
    )
    parser.add_argument(
        "--channels",
        type=cli.positive,
        default=256,
        metavar="C",
        help="channels of the stacks compared; 256 by default",
    )
    options = parser.add_argument_group("options of the network, as of create_model")
    for name, kind in OPTIONS.items():
        add_setting(options, kind, name)
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Prints the tables that the command line asks for; returns 0."""
    if values.network is None and not values.compare:
        raise cli.UsageError(f"say which network: {', '.join(MODELS)}")
    given = {name: value for name, value in vars(values).items() if name in OPTIONS}
    network = None
    if values.network is not None:
        known = option_names(values.network)
        for name in given.keys() - known:
            raise cli.UsageError(
                f"{values.network} has no option {name!r}: {did_you_mean(name, known)}"
            )
        try:
            network = summary(values.network, values.size, **given)
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from error
    stacks = compare_stacks(values.channels) if values.compare else None
    if values.json:
        tables = {} if network is None else network.to_dict()
        if stacks is not None:
            tables["stacks"] = [dataclasses.asdict(stack) for stack in stacks]
        print(json.dumps(tables, indent=2))
    else:
        texts = [str(network)] if network else []
        texts += [format_stacks(stacks)] if stacks else []
        print("\n\n".join(texts))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

"""Tables of a network: python -m vgg_jax.tools.summary vgg16 --size 384

Prints kernel, stride, jump, receptive field, output, parameters, activations and
multiply-adds of each layer for one image. --compare sets stacks of 3x3 convolutions
against 5x5 and 7x7. Makes no weights and touches no accelerator.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vgg_jax.models import MODELS
from vgg_jax.models.measure import summary
from vgg_jax.tools.stacks import compare_stacks, format_stacks


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 1, got {text!r}"
        )
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, by, width = text.partition("x")
    try:
        return _count(height), _count(width if by else height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected pixels, as 384 or 384x512, got {text!r}"
        ) from None


# Keywords of create_model that change a table.
OPTIONS: dict[str, Callable[[str], Any]] = {
    "num_classes": _count,
    "in_channels": _count,
    "width": float,
    "head": str,
    "fc_features": _count,
    "fc_kernel": _count,
    "dtype": str,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; 0, or 2 after an error's one line."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    name, size = values.pop("network"), values.pop("size")
    as_json = values.pop("json")
    compare, channels = values.pop("compare"), values.pop("channels")
    if name is None and not compare:
        parser.error(f"say which network: {', '.join(MODELS)}")
    try:
        network = None if name is None else summary(name, size, **values)
        stacks = compare_stacks(channels) if compare else None
    except (TypeError, ValueError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if as_json:
        found = {} if network is None else network.to_dict()
        if stacks is not None:
            found["stacks"] = [dataclasses.asdict(stack) for stack in stacks]
        print(json.dumps(found, indent=2))
    else:
        tables = [str(network)] if network else []
        tables += [format_stacks(stacks)] if stacks else []
        print("\n\n".join(tables))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vgg_jax.tools.summary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", nargs="?", help=", ".join(MODELS))
    parser.add_argument(
        "--size", type=_size, default=224, help="pixels, as 384 or 384x512 (HxW)"
    )
    parser.add_argument("--json", action="store_true", help="every number, as JSON")
    parser.add_argument(
        "--compare", action="store_true", help="3x3 stacks against 5x5 and 7x7"
    )
    parser.add_argument(
        "--channels", type=_count, default=256, help="of the stacks compared (256)"
    )
    options = parser.add_argument_group("options of the network")
    for name, kind in OPTIONS.items():
        options.add_argument(
            f"--{name}", type=kind, metavar="X", default=argparse.SUPPRESS
        )
    options.add_argument("--ceil_mode", action="store_true", default=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

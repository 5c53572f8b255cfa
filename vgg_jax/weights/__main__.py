"""Lists, fetches, examines and converts weights that others published.

  python -m vgg_jax.weights list
  python -m vgg_jax.weights fetch torchvision/vgg16
  python -m vgg_jax.weights inspect FILE
  python -m vgg_jax.weights verify FILE
  python -m vgg_jax.weights convert IN OUT [--names torchvision]

`fetch` prints the path of the file, which is in ~/.cache/vgg_jax/weights, in the folder
that the environment variable VGG_JAX_WEIGHTS names, or in the Hugging Face hub's cache.
`inspect` tells the format, the network, whose weights they are and how that is known.
`verify` fails unless the file has finite weights of a known network; it says which
published file it is, if it is one. `convert` writes what PyTorch and timm read into a
file that ends in .safetensors, and what Keras 3 reads into one in .weights.h5. Wherever
a file is asked for, the name of published weights will do.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path

from vgg_jax import cli
from vgg_jax.console import format_columns
from vgg_jax.files import parse_path
from vgg_jax.models.layers import FullyConnected
from vgg_jax.weights import formats
from vgg_jax.weights.contents import VARIABLES, Contents
from vgg_jax.weights.fetch import fetch
from vgg_jax.weights.load import (
    fill,
    find_normalization,
    find_origin,
    refuse_not_finite,
)
from vgg_jax.weights.published import PUBLISHED, file_digest, identify
from vgg_jax.weights.recognition import Recognized, recognize_network
from vgg_jax.weights.save import CHANNELS, NAMES, save_weights

CLASSES_SHOWN = 5


def list_published() -> None:
    """Prints the table of published weights."""
    cells = []
    for row in PUBLISHED.values():
        center = [one for one in row.results if one.protocol == "center"]
        errors = [(one.top1_error, one.top5_error) for one in center] or [(None, None)]
        cells.append(
            [
                row.name,
                row.network + ("" if row.has_classifier else " (trunk)"),
                "" if row.size is None else f"{row.size / 1e6:,.0f} MB",
                row.lineage or "",
                *("" if error is None else f"{error:.2f}" for error in errors[0]),
                row.license or "",
            ]
        )
    headings = ["name", "network", "size", "lineage", "top-1", "top-5", "license"]
    print(format_columns(headings, cells))
    print(
        "\nErrors are those published for one center crop, in percent. A name goes to\n"
        "`fetch`, `vgg_jax.load_weights` and `vgg_jax.create_model(weights=)`."
    )


def inspect_file(name: str) -> None:
    """Prints what is known of a file of weights."""
    path = fetch(name)
    contents = formats.read(os.fspath(path))
    row = identify(path)
    recognized = recognize_network(contents)
    facts: dict[str, object] = {
        "file": f"{path}, {path.stat().length:,} bytes",
        "sha256": file_digest(path),
        "published": "no file of the table" if row is None else row.name,
        "format": contents.format,
        "network": recognized or "none that is known",
    }
    if recognized is not None:
        _, variables, _ = recognized.fit
        origin = find_origin(
            recognized.model, contents, variables, os.fspath(path), None, lambda: row
        )
        facts |= {
            "names": recognized.fit.found.naming,
            "lineage": f"{origin.lineage or 'unknown'} ({origin.evidence})",
            "channels": origin.channels or "unknown",
            "normalization": find_normalization(contents, origin) or "unknown",
        }
    if contents.class_names is not None:
        names = [*contents.class_names[:CLASSES_SHOWN]]
        if len(contents.class_names) > CLASSES_SHOWN:
            names.append("...")
        facts["classes"] = f"{len(contents.class_names):,}: {', '.join(names)}"
    width = max(map(len, facts))
    for title, fact in facts.items():
        print(f"{title.ljust(width)}  {fact}")
    print()
    print(_layers(contents.layers, recognized))
    if contents.others:
        print(f"\nbelonging to no layer: {', '.join(contents.others)}")


def _layers(
    layers: Mapping[str, Mapping[str, np.ndarray]], recognized: Recognized | None
) -> str:
    """Returns the table of a file's layers, those of the network first."""
    found = {} if recognized is None else recognized.fit.found.found
    rows = {layer: row for row, layer in found.items()}
    cells = []
    for layer in dict.fromkeys((*rows, *layers)):
        shapes = [
            f"{name} {list(layers[layer][name].shape)}"
            for name in VARIABLES
            if name in layers[layer]
        ]
        cells.append([layer, rows.get(layer, ""), "  ".join(shapes)])
    return format_columns(["layer of the file", "here", "arrays"], cells)


def verify_file(name: str) -> None:
    """Reads a file of weights as a whole, and says what it is.

    Raises:
        ValueError: it is damaged, has values that are no numbers, or is of no known
            network.
    """
    path = fetch(name)
    contents = formats.read(os.fspath(path))
    recognized = _recognize(path, contents)
    row = identify(path)
    is_trunk = row is not None and not row.has_classifier
    unused = {
        layer.name
        for layer in recognized.model.layers
        if is_trunk and isinstance(layer, FullyConnected)
    }
    variables = recognized.fit.variables
    refuse_not_finite(
        {layer: variables[layer] for layer in variables if layer not in unused},
        os.fspath(path),
    )
    published = "no file of the table" if row is None else f"published as {row.name}"
    print(f"{path}: {recognized}, all values finite, {published}")


def convert_file(name: str, output: Path, names: str, channels: str) -> None:
    """Writes the weights of a file in another format or under other names.

    Raises:
        ValueError: the file is damaged, or of no known network; or the output's ending
            is of no format.
    """
    path = fetch(name)
    contents = formats.read(os.fspath(path))
    model = _recognize(path, contents).model
    loaded = fill(model, contents, name, None, lambda: identify(path))
    loaded = dataclasses.replace(loaded, path=os.fspath(path))
    save_weights(model, output, names=names, loaded=loaded, channels=channels)
    print(f"{loaded}\nwritten to {output}")


def _recognize(path: Path, contents: Contents) -> Recognized:
    """Finds the network of a file.

    Raises:
        ValueError: it is none that is known.
    """
    recognized = recognize_network(contents)
    if recognized is None:
        raise ValueError(
            f"{path}: expected the weights of a known network, and its names and "
            "shapes are those of none; `inspect` lists them"
        )
    return recognized


# What each action takes after its name.
ACTIONS = {
    "list": (),
    "fetch": ("NAME",),
    "inspect": ("FILE",),
    "verify": ("FILE",),
    "convert": ("IN", "OUT"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.weights", __doc__)
    parser.add_argument(
        "action",
        type=cli.one_of(ACTIONS),
        metavar="ACTION",
        help=" or ".join(ACTIONS),
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="the file, or the name of published weights; for convert also the output",
    )
    parser.add_argument(
        "--names",
        type=cli.one_of(NAMES),
        default="timm",
        metavar="NAMES",
        help=f"whose names convert writes into .safetensors: {' or '.join(NAMES)}; "
        "timm by default",
    )
    parser.add_argument(
        "--channels",
        type=cli.one_of(CHANNELS),
        default="RGB",
        metavar="ORDER",
        help="the order of color channels that convert writes for, RGB or BGR; RGB by "
        "default",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Does what the command line asks for; returns 0."""
    expected = ACTIONS[values.action]
    if len(values.files) != len(expected):
        raise cli.UsageError(
            f"{values.action} takes {' and '.join(expected) or 'nothing'}, got "
            f"{' and '.join(values.files) or 'nothing'}"
        )
    match values.action, values.files:
        case "list", _:
            list_published()
        case "fetch", [name]:
            print(fetch(name))
        case "inspect", [name]:
            inspect_file(name)
        case "verify", [name]:
            verify_file(name)
        case "convert", [name, output]:
            convert_file(name, parse_path(output), values.names, values.channels)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

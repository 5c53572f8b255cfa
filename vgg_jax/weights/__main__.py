"""Lists, fetches, examines and converts weights that others published.

  python -m vgg_jax.weights list
  python -m vgg_jax.weights fetch torchvision/vgg16
  python -m vgg_jax.weights inspect FILE
  python -m vgg_jax.weights verify FILE
  python -m vgg_jax.weights convert IN OUT [--names torchvision]
  python -m vgg_jax.weights convert runs/mine OUT

`fetch` prints the path of the file, which is in ~/.cache/vgg_jax/weights, in the folder
that the environment variable VGG_JAX_WEIGHTS names, or in the Hugging Face hub's cache.
`inspect` tells the format, the network, whose weights they are and how that is known.
`verify` fails unless the file has finite weights of a known network; it says which
published file it is, if it is one. `convert` writes what PyTorch and timm read into a
file that ends in .safetensors, what Keras 3 reads into one in .weights.h5, and what the
Hugging Face hub has into a folder, under a name without an ending; IN may be the folder
of a run, whose best weights they are. Wherever a file is asked for, the name of
published weights will do.
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
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights import formats
from vgg_jax.weights.contents import VARIABLES, Contents
from vgg_jax.weights.fetch import fetch
from vgg_jax.weights.folders import is_run
from vgg_jax.weights.lineage import CHANNELS
from vgg_jax.weights.load import (
    fill,
    find_normalization,
    find_origin,
    refuse_not_finite,
    wrong_class_names,
)
from vgg_jax.weights.pretrained import save_pretrained
from vgg_jax.weights.published import PUBLISHED, file_digest, identify
from vgg_jax.weights.recognition import Recognized, recognize_network
from vgg_jax.weights.save import NAMES, save_weights

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


def inspect_file(name: str, source: str | None, channels: str | None) -> None:
    """Prints what is known of a file of weights.

    Args:
        name: the file, or the name of published weights.
        source, channels: what the user says, as `load_weights` takes it.
    """
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
        model, file = recognized.model, os.fspath(path)
        origin = find_origin(
            model, contents, variables, file, source, channels, lambda: row
        )
        normalization = find_normalization(contents, origin, file, model.in_channels)
        facts |= {
            "names": recognized.fit.found.naming,
            "lineage": f"{origin.lineage or 'unknown'} ({origin.evidence})",
            "channels": origin.channels or "unknown",
            "normalization": normalization or "unknown",
        }
    if contents.class_names is not None:
        names = [*contents.class_names[:CLASSES_SHOWN]]
        if len(contents.class_names) > CLASSES_SHOWN:
            names.append("...")
        facts["classes"] = f"{len(contents.class_names):,}: {', '.join(names)}"
    num_classes = None if recognized is None else recognized.num_classes
    notes = (*contents.notes, wrong_class_names(contents, num_classes))
    if any(notes):
        facts["notes"] = "; ".join(filter(None, notes))
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
    if wrong := wrong_class_names(contents, recognized.num_classes):
        raise ValueError(f"{path}: {wrong}")
    print(f"{path}: {recognized}, all values finite, {published}")


def convert_file(name: str, output: Path, values: argparse.Namespace) -> None:
    """Writes the weights of a file in another format or under other names.

    Args:
        name: the file, or the name of published weights.
        output: the file, or a folder as the hub has them.
        values: --names, --source, --channels and --output_channels.

    Raises:
        ValueError: the file is damaged, or of no known network; or the output's ending
            is of no format.
    """
    path = fetch(name)
    contents = formats.read(os.fspath(path))
    recognized = _recognize(path, contents)
    model = recognized.model
    loaded = fill(
        model, contents, name, values.source, values.channels, lambda: identify(path)
    )
    loaded = dataclasses.replace(loaded, path=os.fspath(path))
    if output.suffix:
        save_weights(
            model,
            output,
            names=values.names,
            loaded=loaded,
            channels=values.output_channels,
        )
    else:
        save_pretrained(model, output, recognized.network, loaded=loaded)
    print(f"{loaded}\nwritten to {output}")


def convert_run(folder: Path, output: Path, values: argparse.Namespace) -> None:
    """Writes the best weights of a run, with its normalization and its classes' names.

    Args:
        folder: the folder of the run.
        output, values: as `convert_file` takes them.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: a checkpoint cannot be read, the network does not name classes, or
            the output's ending is of no format.
    """
    # Whoever only reads files of weights waits for none of these.
    from vgg_jax.training.workdir.checkpoint import check_classifies, restore_model
    from vgg_jax.training.workdir.facts import read_class_names

    model, config, step = restore_model(folder)
    check_classifies(config, folder)
    data, options = config.data, dataclasses.asdict(config.model)
    normalization = None if data.whiten else Normalization(data.mean, data.std)
    class_names = read_class_names(folder)
    if output.suffix:
        save_weights(
            model,
            output,
            names=values.names,
            normalization=normalization,
            class_names=class_names,
            channels=values.output_channels,
        )
    else:
        save_pretrained(
            model,
            output,
            options.pop("name"),
            options,
            normalization=normalization,
            class_names=class_names,
        )
    print(f"step {step:,} of {folder} written to {output}")


def refuse_existing(output: Path) -> None:
    """Refuses to write over what is there, which may be a run.

    Raises:
        FileExistsError: there is a file, or a folder with something in it.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(
            f"{output} is there already and is not overwritten; give another name, or "
            "remove it first"
        )


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
        "--output_channels",
        type=cli.one_of(CHANNELS),
        default="RGB",
        metavar="ORDER",
        help="the order of color channels that convert writes for, RGB or BGR; RGB by "
        "default",
    )
    parser.add_source_of_weights()
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
            inspect_file(name, values.source, values.channels)
        case "verify", [name]:
            verify_file(name)
        case "convert", [name, output]:
            refuse_existing(parse_path(output))
            if is_run(parse_path(name)):
                convert_run(parse_path(name), parse_path(output), values)
            else:
                convert_file(name, parse_path(output), values)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

"""Writes a trained network as StableHLO or as ONNX, to be run without this library.

  python -m vgg_jax.export --workdir DIR --format stablehlo FOLDER
  python -m vgg_jax.export --weights torchvision/vgg16 --format onnx vgg16.onnx

StableHLO is for CPU, CUDA and TPU, any number of images of any size; the folder gets
the program, the weights and the metadata, and JAX alone runs it. ONNX is for one image
of any size, unless --batch_size and --image_size say otherwise. The output is the class
scores, or with --output the soft-max, the dense score map or the map of any layer:
pool5 is a VGG without its head. Images are normalized already unless --input asks for
pixels 0-255. What is there already is not overwritten.
"""

import argparse
import sys
from collections.abc import Sequence

from vgg_jax import cli
from vgg_jax.files import parse_path

FORMATS = ("stablehlo", "onnx")
ANY = "any"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.export", __doc__)
    parser.add_argument(
        "out",
        type=cli.path,
        metavar="OUT",
        help="the file of ONNX, or the folder of StableHLO",
    )
    parser.add_workdir("folder of the run whose network is written", or_weights=True)
    parser.add_argument(
        "--format",
        type=cli.one_of(FORMATS),
        required=True,
        metavar="FORMAT",
        help=" or ".join(FORMATS),
    )
    parser.add_argument(
        "--output",
        default="scores",
        metavar="NAME",
        help="what comes out: scores, posteriors, score_map, or the name of a layer "
        "such as pool5, after which the network ends; scores by default",
    )
    parser.add_argument(
        "--input",
        default="normalized",
        metavar="TYPE",
        help="what goes in: normalized images, or pixels 0-255 as uint8 or as float32, "
        "[N, H, W, C], which the network then normalizes; normalized by default",
    )
    parser.add_argument(
        "--batch_size",
        type=batch_size,
        metavar="N",
        help="images in a batch of ONNX, or any; 1 by default",
    )
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="HxW",
        help="height and width of the images of ONNX in pixels, such as 224x224, or "
        "any; any by default",
    )
    return cli.command(run, parser, arguments)


def batch_size(text: str) -> int | str:
    """Reads a number of images from the text of a flag, or "any".

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    return ANY if text == ANY else cli.positive(text)


def image_size(text: str) -> tuple[int, int] | str:
    """Reads a height and a width from the text of a flag, such as 224x224, or "any".

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    if text == ANY:
        return ANY
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"expected height and width in pixels such as 224x224, or any, got {text!r}"
        )
    height, width = map(cli.positive, sides)
    return height, width


def run(values: argparse.Namespace) -> int:
    """Exports the network of the command line; returns 0."""
    from vgg_jax.export import onnx_file, stablehlo
    from vgg_jax.export.load import load_program
    from vgg_jax.training.workdir.weights_folder import folders_of

    sizes = {
        name: None if value == ANY else value
        for name in ("batch_size", "image_size")
        if (value := getattr(values, name)) is not None
    }
    if values.format == "onnx":
        onnx_file.require_onnx()
        onnx_file.refuse_existing(values.out)
    else:
        if sizes.keys() and any(sizes.values()):
            raise cli.UsageError(
                "StableHLO takes any number of images of any size: leave out "
                + " and ".join(f"--{name}" for name in sizes)
            )
        stablehlo.refuse_existing(values.out)
    (workdir,) = folders_of(values)
    program = load_program(
        parse_path(workdir), output=values.output, input=values.input
    )
    if values.format == "onnx":
        onnx_file.write_onnx(program, values.out, **sizes)
    else:
        stablehlo.write_stablehlo(program, values.out)
    print(f"written to {values.out}")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

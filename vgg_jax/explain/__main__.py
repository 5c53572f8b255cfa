"""Explains a class of pictures by every method, and draws the maps side by side.

  python -m vgg_jax.explain --workdir DIR IMAGE [IMAGE ...]
  python -m vgg_jax.explain --weights torchvision/vgg16 --class goldfish IMAGE

Writes IMAGE.explain.png: the picture, Grad-CAM, the class score map (for Network in
Network the class activation map) and occlusion, for the most probable class or a chosen
one. docs/explaining.md says what each shows.
"""

import argparse
import sys
from collections.abc import Sequence

from vgg_jax import cli
from vgg_jax.files import parse_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.explain", __doc__)
    parser.add_argument(
        "images",
        nargs="+",
        type=cli.path,
        metavar="IMAGE",
        help="a picture of any size",
    )
    parser.add_workdir("folder of the run whose network is explained", or_weights=True)
    parser.add_argument(
        "--output",
        default=parse_path("."),
        type=cli.path,
        metavar="DIR",
        help="folder for the drawings; the current one by default",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="the class to explain; the most probable one by default",
    )
    parser.add_argument(
        "--layers",
        default=(),
        type=cli.comma_separated(str),
        metavar="NAME,NAME",
        help="the layers whose Grad-CAM is drawn, such as relu3_3,relu5_3; by default "
        "the deepest one whose map is fine enough to look at",
    )
    parser.add_argument(
        "--scale",
        type=cli.positive,
        metavar="Q",
        help="short side in pixels that the picture is rescaled to; by default near "
        "the scale of training",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Explains the pictures; returns 0, or 1 where one could not be read."""
    from vgg_jax.explain.picture import explain_files
    from vgg_jax.predict import load_run
    from vgg_jax.training.workdir.weights_folder import folders_of

    (workdir,) = folders_of(values)
    unread = explain_files(
        load_run(workdir),
        values.images,
        values.output,
        class_name=values.class_name,
        layers=values.layers,
        scale=values.scale,
    )
    return cli.FAILED if unread else cli.DONE


if __name__ == "__main__":
    sys.exit(main())

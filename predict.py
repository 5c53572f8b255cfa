"""Names what is in pictures, and draws where (section 3.2 of arXiv:1409.1556).

  python predict.py --workdir DIR IMAGE [IMAGE ...]
  python predict.py --weights torchvision/vgg16 IMAGE [IMAGE ...]

Prints the most probable classes of each picture, and writes IMAGE.heat.png: the heat
map of the first class over the picture. The posteriors are those of dense evaluation at
the scales of the run in the workdir.
"""

import argparse
import sys
from collections.abc import Sequence

from vgg_jax import cli
from vgg_jax.files import parse_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python predict.py", __doc__)
    parser.add_argument(
        "images",
        nargs="+",
        type=cli.path,
        metavar="IMAGE",
        help="a picture of any size",
    )
    parser.add_workdir("folder of the run whose network is used", or_weights=True)
    parser.add_argument(
        "--output",
        default=parse_path("."),
        type=cli.path,
        metavar="DIR",
        help="folder for the heat maps; the current one by default",
    )
    parser.add_argument(
        "--top",
        default=5,
        type=cli.positive,
        metavar="N",
        help="classes to print for each picture; 5 by default",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Predicts; returns 0, or 1 where a picture could not be read."""
    from vgg_jax.predict import load_run, predict_files
    from vgg_jax.training.workdir.weights_folder import folders_of

    (workdir,) = folders_of(values)
    classifier = load_run(workdir)
    unread = predict_files(classifier, values.images, values.output, top=values.top)
    return cli.FAILED if unread else cli.DONE


if __name__ == "__main__":
    sys.exit(main())

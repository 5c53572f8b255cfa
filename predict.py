"""Say what is in pictures, and where: python predict.py --weights WORKDIR IMAGE...

Prints the five most probable classes of each and writes IMAGE.heat.png, the score map
of the first over the picture (section 3.2 of arXiv:1409.1556). The posteriors are those
of dense evaluation at the scales of the run.
"""

import argparse
from pathlib import Path

from vgg_jax import cli


def main() -> int:
    """Follow the command line; 0, or 1 when a picture could not be read."""
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"expected --top of at least 1, got {arguments.top}")
    from vgg_jax.predict import load_run, predict_files

    classifier = load_run(arguments.weights)
    unread = predict_files(
        classifier, arguments.images, arguments.output, top=arguments.top
    )
    return int(unread > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--weights", required=True, type=Path, help="a run's folder")
    parser.add_argument("--output", default=".", type=Path, help="for the heat maps")
    parser.add_argument("--top", default=5, type=int, help="classes to print (5)")
    parser.add_argument("--traceback", action="store_true", help="of an error")
    cli.finish(main)

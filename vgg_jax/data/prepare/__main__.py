"""Command line: `python -m vgg_jax.data.prepare fashion_mnist|imagenet2012`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vgg_jax.config import DataConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares one data set, or exits with one line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m vgg_jax.data.prepare")
    parser.add_argument("dataset", choices=("fashion_mnist", "imagenet2012"))
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="the folder with the downloaded files: for fashion_mnist the four idx "
        "files (found or fetched if not given), for imagenet2012 the two tar files",
    )
    parser.add_argument("--data_dir", default=DataConfig.data_dir)
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept tar files with some pictures only",
    )
    arguments = parser.parse_args(argv)
    data_dir = Path(arguments.data_dir).expanduser().resolve()
    source = arguments.source and Path(arguments.source).expanduser().resolve()
    try:
        if arguments.dataset == "fashion_mnist":
            from vgg_jax.data import fashion_mnist

            name = "Fashion-MNIST"
            ready = fashion_mnist.prepare(data_dir, source)
        else:
            from vgg_jax.data import imagenet

            name = "ImageNet"
            if source is None:
                files = " and ".join(imagenet.TARS.values())
                parser.error(f"imagenet2012 needs --from, the folder of {files}")
            ready = imagenet.prepare(source, data_dir, partial=arguments.partial)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; the same command goes on\n")
    print(f"{name} is in {ready}")  # whether built now or long ago


if __name__ == "__main__":
    main()

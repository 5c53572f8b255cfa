"""Command line: `python -m vgg_jax.data.prepare fashion_mnist|imagenet2012`."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_jax.config import DataConfig
from vgg_jax.data import imagenet


def prepare_imagenet(tars: Path, data_dir: Path) -> None:
    """Writes TFDS's `imagenet2012` as ArrayRecord; needs TensorFlow, this once.

    Raises:
        FileNotFoundError: a tar file is missing.
        ImportError: TensorFlow is not installed.
    """
    missing = [name for name in imagenet.TARS if not (tars / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{tars} has no {' and no '.join(missing)}; download them from "
            "https://image-net.org (an account is needed) and name their folder "
            "with --from"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "TFDS reads the ImageNet tar files with TensorFlow, which is not "
            "installed; type `pip install tensorflow-cpu` (training does not need it)"
        )
    import tensorflow_datasets as tfds

    name = f"imagenet2012:{imagenet.VERSION}"
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=tars, try_download_gcs=False
        )
    )
    print(f"ImageNet: ready in {builder.data_dir}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares one data set, or exits with one line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m vgg_jax.data.prepare")
    parser.add_argument("dataset", choices=("fashion_mnist", "imagenet2012"))
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="the folder with the downloaded files: for fashion_mnist the four idx "
        f"files (found or fetched if not given), else {' and '.join(imagenet.TARS)}",
    )
    parser.add_argument("--data_dir", default=DataConfig.data_dir)
    arguments = parser.parse_args(argv)
    data_dir = Path(arguments.data_dir).expanduser().resolve()
    source = arguments.source and Path(arguments.source).expanduser().resolve()
    try:
        if arguments.dataset == "fashion_mnist":
            from vgg_jax.data import fashion_mnist

            ready = fashion_mnist.prepare(data_dir, source)
            print(f"Fashion-MNIST is in {ready}")  # whether built now or long ago
        elif source is None:
            parser.error(f"imagenet2012 needs --from, the folder of {imagenet.TARS}")
        else:
            prepare_imagenet(source, data_dir)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

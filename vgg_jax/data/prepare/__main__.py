"""Writes a data set from its official files, for `data.dataset` to name.

python -m vgg_jax.data.prepare cifar10 --from DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vgg_jax.config import DataConfig
from vgg_jax.data.sources import SOURCES

PREPARATIONS = {
    name: row.preparation for name, row in SOURCES.items() if row.preparation
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares one data set, or exits with one line that says why not."""
    parser = argparse.ArgumentParser(
        prog="python -m vgg_jax.data.prepare",
        description="Writes a data set from its official files into --data_dir, once.",
    )
    parser.add_argument("dataset", choices=tuple(PREPARATIONS))
    files = "; ".join(
        f"for {name} {' and '.join(one.files)}" + " (optional)" * one.fetches
        for name, one in PREPARATIONS.items()
    )
    parser.add_argument(
        "--from",
        dest="folder",
        type=_folder,
        metavar="DIR",
        help=f"the folder with the downloaded files: {files}",
    )
    parser.add_argument(
        "--data_dir",
        type=_folder,
        default=_folder(DataConfig.data_dir),
        help="where data sets are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept files with some of the pictures, for trials",
    )
    arguments = parser.parse_args(argv)
    preparation = PREPARATIONS[arguments.dataset]
    ready = preparation.directory(arguments.data_dir).is_dir()
    if arguments.folder is None and not (ready or preparation.fetches):
        files = " and ".join(preparation.files)
        parser.error(f"{arguments.dataset} needs --from, the folder of {files}")
    try:
        directory = preparation.run(
            arguments.data_dir, arguments.folder, partial=arguments.partial
        )
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; the same command goes on\n")
    print(
        f"{preparation.title} is in {directory}"
        + (", prepared by an earlier call" if ready else "")
    )


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


if __name__ == "__main__":
    main()

"""Files of plain arrays (npz): written whole or not at all, read without pickle."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.training.workdir import replacing


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays, in place of a file that was there before."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or of another kind; the message names it.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        raise
    except (
        *(AttributeError, EOFError, IndexError, KeyError, OSError),
        *(RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise ValueError(
            f"{path} is damaged or of another version ({type(error).__name__}: "
            f"{error}); delete it and run eval.py, which writes it anew"
        ) from error

"""This module decodes a window of a JPEG, where nvImageCodec is installed.

OpenCV decodes whole pictures. libjpeg-turbo can stop below a window and leave out most
of the work beside it; nvImageCodec passes that on, and needs no GPU for it.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

PACKAGE = "nvidia.nvimgcodec"
VERSION = "0.9."  # of requirements-jpeg.txt; others have other names, or no windows
# The one of its decoders that is loaded: others look for CUDA's libraries, and say on
# the terminal that they are not there.
EXTENSION = "libjpeg_turbo_ext.so*"
END = b"\xff\xd9"
# The color of the first columns of a window can depend on what is beside it.
MIN_WIDTH = 8

_importing = threading.Lock()
_of_thread = threading.local()  # a decoder is not for several threads


def decode_window(
    data: bytes, top: int, left: int, height: int, width: int
) -> np.ndarray | None:
    """Decodes a window of a color JPEG: uint8 [height, width, 3], RGB.

    The pixels are those of OpenCV to the bit, before it turns a picture as EXIF data
    say. The result is None where they might not be, and where nvImageCodec is not
    installed or cannot decode the file: then the picture has to be decoded whole.
    """
    # OpenCV refuses a file without an end.
    if not data.endswith(END) or width < MIN_WIDTH:
        return None
    codec = _codec()
    if codec is None:
        return None
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = _new_decoder(codec)
    region = codec.Region(top, left, top + height, left + width)
    stream = codec.CodeStream(data).get_sub_code_stream(region=region)
    image = _of_thread.decoder.decode(stream)
    return None if image is None else np.asarray(image)


@functools.cache
def _codec() -> Any:
    """Returns the module of nvImageCodec; None where it cannot be used."""
    # Whatever is wrong with it, pictures can be decoded without it.
    try:
        try:
            spec = importlib.util.find_spec(PACKAGE)
        except ModuleNotFoundError:  # nothing of NVIDIA's is there
            spec = None
        if spec is None:
            return None
        with _importing:
            codec = _import(Path(*spec.submodule_search_locations or ()))
        if not codec.__version__.startswith(VERSION):
            raise ImportError(f"expected version {VERSION}x, found {codec.__version__}")
        _new_decoder(codec)
    except Exception as error:
        logging.warning(
            "%s is not used, and pictures are decoded whole: %s; "
            "`pip install -r requirements-jpeg.txt`",
            PACKAGE,
            error,
        )
        return None
    return codec


def _import(folder: Path) -> Any:
    """Imports nvImageCodec, which lies in `folder`, with one of its decoders.

    Which those are is told by the environment, and read as it is imported.
    """
    with tempfile.TemporaryDirectory() as chosen:
        for extension in (folder / "extensions").glob(EXTENSION):
            Path(chosen, extension.name).symlink_to(extension)
        with _environment(
            NVIMGCODEC_EXTENSIONS_PATH=chosen, PYNVIMGCODEC_VERBOSITY="0"
        ):
            return importlib.import_module(PACKAGE)


def _new_decoder(codec: Any) -> Any:
    """Makes a decoder that runs in the thread that calls it, on the CPU."""
    return codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[codec.Backend(codec.CPU_ONLY)],
    )


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets variables inside of `with`, but for those that somebody else has set."""
    new = {name: v for name, v in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]

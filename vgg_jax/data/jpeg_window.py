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
from types import ModuleType

import numpy as np
from absl import logging

PACKAGE = "nvidia.nvimgcodec"
# The one of its decoders that is loaded: others look for CUDA's libraries, and say on
# the terminal that they are not there.
EXTENSION = "libjpeg_turbo_ext.so*"
END = b"\xff\xd9"

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
    # OpenCV refuses a file without an end. A column by itself at the left edge has
    # other colors than beside the next one.
    if not data.endswith(END) or width < 2:
        return None
    codec = _codec()
    if codec is None:
        return None
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.CPU_ONLY)],
            options=":fancy_upsampling=1",
        )
    region = codec.Region(top, left, top + height, left + width)
    stream = codec.CodeStream(data).get_sub_code_stream(region=region)
    image = _of_thread.decoder.decode(stream)
    return None if image is None else np.asarray(image)


@functools.cache
def _codec() -> ModuleType | None:
    """Imports nvImageCodec; None where it is not installed or does not load."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:  # nothing of NVIDIA's is there
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    [package] = spec.submodule_search_locations
    with _importing, tempfile.TemporaryDirectory() as folder:
        for extension in Path(package, "extensions").glob(EXTENSION):
            Path(folder, extension.name).symlink_to(extension)
        with _environment(
            NVIMGCODEC_EXTENSIONS_PATH=folder, PYNVIMGCODEC_VERBOSITY="0"
        ):
            try:
                return importlib.import_module(PACKAGE)
            except ImportError as error:
                logging.warning("Pictures are decoded whole: %s", error)
                return None


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

"""The weights of the small networks whose files lie here, by NumPy alone.

Scripts that write the files in the environments of other frameworks import this
module, and so do the tests that read them.
"""

import zlib

import numpy as np

WIDTHS = (1, 2, 4, 4, 8, 8, 8, 8)
CONVOLUTIONS = ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")
HIDDEN, CLASSES = 8, 5

# What batch normalization adds to the variance in some files, where it is not usual.
EPSILONS = {"bn1_1": 0.01, "bn5_2": 0.02}

# `create_model` makes the same network of these.
OPTIONS = {"width": 1 / 64, "fc_features": 512, "num_classes": CLASSES}

Layers = dict[str, dict[str, np.ndarray]]


def vgg11(*, batch_norm: bool = False, side: int | None = 2) -> Layers:
    """The layers of a VGG-11, a 64th as wide, with kernels [h, w, in, out].

    Args:
        batch_norm: with batch normalization.
        side: the kernel size of fc6; None leaves the three last layers out.
    """
    layers: Layers = {}
    channels = 3
    for place, width in zip(CONVOLUTIONS, WIDTHS, strict=True):
        layers[f"conv{place}"] = _convolution(f"conv{place}", 3, channels, width)
        if batch_norm:
            layers[f"bn{place}"] = {
                name: _values(f"bn{place}.{name}", (width,))
                for name in ("scale", "bias", "mean", "var")
            }
        channels = width
    if side is not None:
        layers["fc6"] = _convolution("fc6", side, channels, HIDDEN)
        layers["fc7"] = _convolution("fc7", 1, HIDDEN, HIDDEN)
        layers["fc8"] = _convolution("fc8", 1, HIDDEN, CLASSES)
    return layers


def _convolution(
    name: str, side: int, inputs: int, outputs: int
) -> dict[str, np.ndarray]:
    return {
        "kernel": _values(f"{name}.kernel", (side, side, inputs, outputs)),
        "bias": _values(f"{name}.bias", (outputs,)),
    }


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/256, which compress well; they differ between arrays."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return (generator.integers(1, 256, shape) / 256).astype(np.float32)

"""A tiny network in three stages, images, and its maps in NumPy."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from tests import reference
from vgg_jax.models import ConvNet
from vgg_jax.models import layers as rows
from vgg_jax.preprocessing import Normalization

NORMALIZATION = Normalization(mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))
WORDS = "conv1_1 relu1_1 conv1_2 relu1_2 pool1 conv2_1 relu2_1 pool2 conv3_1 relu3_1"
WIDTHS = {"1": 4, "2": 6, "3": 8}  # by stage
CHANNELS = {"relu1_2": 4, "relu2_1": 6, "relu3_1": 8}
TAPS = tuple(CHANNELS)


def _row(word: str) -> rows.Layer:
    if word.startswith("conv"):
        return rows.Conv(word, WIDTHS[word[4]], kernel=3, padding=1)
    if word.startswith("pool"):
        return rows.MaxPool(word, window=2, stride=2, ceil_mode=False)
    return rows.Relu(word)


def _draw(leaf: jax.Array) -> np.ndarray:
    """Draws He's deviation for kernels, and biases."""
    rng = np.random.default_rng(leaf.size)
    inputs = np.prod(leaf.shape[:-1])
    deviation = np.sqrt(2 / inputs) if leaf.ndim > 1 else 0.3
    return (deviation * rng.normal(size=leaf.shape)).astype(np.float32)


GRAPHDEF, STATE = nnx.split(
    ConvNet([_row(word) for word in WORDS.split()], rngs=nnx.Rngs(0))
)
PARAMS = jax.tree.map(_draw, nnx.to_pure_dict(STATE))
MODEL: ConvNet = nnx.merge(GRAPHDEF, PARAMS)

Pool = Callable[[np.ndarray], np.ndarray]


def photographs(*shape: int, seed: int = 0) -> np.ndarray:
    """Images [N, H, W, 3] from -1 to 1."""
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def max_pool(x: np.ndarray) -> np.ndarray:
    return reference.pool(x, 2, 2, False, np.max)


def average_pool(x: np.ndarray) -> np.ndarray:
    return reference.pool(x, 2, 2, False, np.mean)


def l2_pool(x: np.ndarray) -> np.ndarray:
    """The root of the mean of squares of 3x3 pixels around each second one.

    Its weights are 1, 2, 1 along either side.
    """
    n, height, width, channels = x.shape
    squares = np.pad(np.square(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.empty((n, -(-height // 2), -(-width // 2), channels), x.dtype)
    weights = np.outer((1, 2, 1), (1, 2, 1))[None, :, :, None] / 16
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = squares[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, i, j] = np.sqrt((weights * window).sum(axis=(1, 2)) + 1e-12)
    return out


def maps_of(x: np.ndarray, pool: Pool = max_pool) -> dict[str, np.ndarray]:
    """Every map of `tiny`, of images that are normalized, in their dtype."""
    run = reference.Run(PARAMS, x)
    for word in WORDS.split():
        if word.startswith("conv"):
            run.conv(word, 3, padding=1)
        elif word.startswith("relu"):
            run.relu(word)
        else:
            run.x = pool(run.x)
            run.note(word)
    return run.seen

"""Receptive fields against the networks themselves: which pixels reach a cell.

With positive weights, no biases and a black image every map is zero, and a lit pixel
reaches a cell exactly when the cell's receptive field holds it: no max pool hides it.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from vgg_jax.models import ConvNet, create_model
from vgg_jax.models.measure import receptive_field


def positive(name: str) -> ConvNet:
    """The network at one channel a layer, its kernels the mean of what they see."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: create_model(name, width=1e-3, rngs=nnx.Rngs(0)))
    )

    def value(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        is_kernel = len(leaf.shape) == 4
        mean = 1 / np.prod(leaf.shape[:3]) if is_kernel else 0.0
        return np.full(leaf.shape, mean, leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(value, state))


@pytest.mark.parametrize(
    ("name", "layer", "long", "short", "cell", "axis"),
    [
        ("vgg11", "fc6", 384, 224, 2, 1),
        ("vgg16", "conv4_3", 160, 8, 8, 2),
        ("vgg16", "pool5", 256, 32, 3, 2),
        ("nin_imagenet", "cccp8", 259, 39, 3, 1),
        ("nin_cifar", "cccp6", 64, 4, 7, 2),
        ("nin_tutorial", "cccp8", 259, 67, 3, 2),
    ],
)
def test_a_cell_sees_its_receptive_field(
    name: str, layer: str, long: int, short: int, cell: int, axis: int
) -> None:
    (row,) = (r for r in receptive_field(name) if r.layer == layer)
    first = row.start + cell * row.jump
    end = first + row.receptive_field
    assert 2 <= first < end <= long - 2, "choose an image that holds the field"
    # Around both ends every line of pixels; between and beyond, every 16th.
    ends = {*range(first - 2, first + 2), *range(end - 2, end + 2)}
    lit = np.array(sorted(ends | set(range(0, long, 16))))

    images = np.zeros((len(lit), long, short, 3), np.float32)
    images[np.arange(len(lit)), lit] = 1.0
    if axis == 2:
        images = images.swapaxes(1, 2)
    model = positive(name)
    cells = jax.jit(lambda x: model.features(x, (layer,))[layer])(images)
    seen = np.take(np.asarray(cells), cell, axis=axis).any(axis=(1, 2))
    np.testing.assert_array_equal(seen, (first <= lit) & (lit < end))

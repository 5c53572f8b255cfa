"""Images of several sizes in one batch, each against the reference on it alone."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import images, network
from tests.models.test_nin import CHANNELS, REFERENCES
from tests.models.test_vgg import NETWORKS
from vgg_jax import ConvNet
from vgg_jax.models import layers as rows

# Odd and even, and of every remainder that floor and ceil mode round differently.
SIZES = ((64, 96), (97, 71), (83, 108), (110, 65))
BATCH = (112, 110)
OPTIONS = {"width": 1 / 16, "num_classes": 7}


def padded(pictures: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """A batch with a picture in each upper left corner and rubbish around it."""
    batch = 30 * images(len(pictures), height, width, pictures[0].shape[-1], seed=5)
    for row, picture in zip(batch, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return batch


def score_map(graphdef: Any, params: Any, batch: np.ndarray, sizes: Any) -> np.ndarray:
    def run(params: Any, batch: jax.Array, sizes: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params).score_map(batch, sizes=sizes)

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(params, batch, jnp.asarray(sizes, jnp.int32)))


def assert_each_alone(
    got: np.ndarray, want: list[np.ndarray], tolerance: float = 1e-5
) -> None:
    """Row i holds map i in its corner, and zero in every other cell."""
    for row, expected in zip(got, want, strict=True):
        full = np.zeros_like(row)
        full[: expected.shape[1], : expected.shape[2]] = expected[0]
        np.testing.assert_allclose(
            row, full, rtol=0, atol=tolerance * np.abs(expected).max()
        )


VGG = [(name, ceil) for name in NETWORKS for ceil in (False, True)]
QUICK = [("vgg11_lrn", True), ("vgg16_c", False), ("vgg13_bn", True)]


@pytest.mark.parametrize(
    ("name", "ceil"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in VGG
    ],
)
def test_vgg(name: str, ceil: bool) -> None:
    letter, settings, _ = NETWORKS[name]
    graphdef, params = network(name, **OPTIONS, fc_kernel=2, ceil_mode=ceil)
    pictures = [
        images(1, *size, 3, seed=i)[0].astype(np.float64)
        for i, size in enumerate(SIZES)
    ]
    got = score_map(graphdef, params, padded(pictures, *BATCH), SIZES)
    want = [
        reference.vgg(letter, params, p[None], **settings, fc_kernel=2, ceil=ceil)
        for p in pictures
    ]
    assert_each_alone(got, [seen["score_map"] for seen in want])


@pytest.mark.parametrize("name", REFERENCES)
def test_nin(name: str) -> None:
    channels = CHANNELS[name]
    graphdef, params = network(name, **OPTIONS, in_channels=channels)
    sizes = [(height + 40, width + 40) for height, width in SIZES]
    pictures = [
        images(1, *size, channels, seed=i)[0].astype(np.float64)
        for i, size in enumerate(sizes)
    ]
    got = score_map(graphdef, params, padded(pictures, 155, 150), sizes)
    want = [REFERENCES[name](params, p[None])["score_map"] for p in pictures]
    assert len({seen.shape for seen in want}) > 1
    assert_each_alone(got, want)


def rows_alone(layers: tuple[rows.Layer, ...], picture: np.ndarray) -> np.ndarray:
    """The rows that the test below uses, by the reference, with kernels of `drawn`."""
    x = picture[None].astype(np.float64)
    for layer in layers:
        match layer:
            case rows.Conv(_, features, kernel, stride, padding):
                weights, bias = drawn(x.shape[-1], features, kernel)
                x = reference.convolve(x, weights, bias, stride, padding)
            case rows.MaxPool(_, window, stride, ceil_mode):
                x = reference.pool(x, window, stride, ceil_mode, np.max)
            case rows.AveragePool(_, window, stride, ceil_mode):
                x = reference.pool(x, window, stride, ceil_mode, np.mean)
    return x


def drawn(inputs: int, features: int, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(inputs + kernel)
    return rng.normal(size=(kernel, kernel, inputs, features)), np.full(features, -9.0)


CONV = rows.Conv("a", 2, kernel=3, padding=1)
STACKS = {
    "conv on conv": (CONV, rows.Conv("b", 2, kernel=3, padding=1)),
    "strided": (CONV, rows.Conv("b", 2, kernel=5, stride=2, padding=2)),
    # Without a ReLU all values here are far below zero: padding is not zero but -inf.
    "max pool, ceil": (CONV, rows.MaxPool("b", 3, 2, ceil_mode=True)),
    "max pool, floor": (CONV, rows.MaxPool("b", 3, 2, ceil_mode=False)),
    "average pool, ceil": (CONV, rows.AveragePool("b", 3, 2, ceil_mode=True)),
    "average pool, floor": (CONV, rows.AveragePool("b", 3, 2, ceil_mode=False)),
    "after a max pool": (
        rows.MaxPool("a", 2, 2, ceil_mode=True),
        rows.Conv("b", 2, kernel=1),
    ),
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_rows(layers: tuple[rows.Layer, ...]) -> None:
    model = ConvNet(
        layers,
        num_classes=2,
        in_channels=2,
        init="glorot",
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    channels = 2
    for layer in layers:
        if isinstance(layer, rows.Conv):
            weights, _ = drawn(channels, layer.features, layer.kernel)
            module = getattr(model, layer.name)
            module.kernel[...], module.bias[...] = jnp.float32(weights), -9.0
    rng = np.random.default_rng(0)
    sizes = [(7, 8), (8, 9), (6, 5), (10, 7)]
    pictures = [rng.normal(size=(*size, 2)) for size in sizes]
    got = score_map(*nnx.split(model), padded(pictures, 11, 12), sizes)
    assert np.isfinite(got).all()
    assert_each_alone(got, [rows_alone(layers, p) for p in pictures])


def test_a_full_size_is_no_size() -> None:
    graphdef, params = network("nin_cifar", width=1 / 16, num_classes=7)
    batch = images(2, 31, 40, 3)
    alone = jax.jit(lambda p, x: nnx.merge(graphdef, p).score_map(x))(params, batch)
    chex.assert_trees_all_close(
        score_map(graphdef, params, batch, [(31, 40)] * 2), np.asarray(alone), atol=1e-5
    )


@pytest.mark.parametrize("name", [*NETWORKS, *REFERENCES])
def test_sizes_of_many_are_the_size_of_each(name: str) -> None:
    graphdef, state = network(name, width=1 / 64)
    layers = nnx.merge(graphdef, state).layers
    smallest = rows.smallest_size(layers)
    sides = np.arange(smallest, smallest + 100)
    many = rows.output_sizes(layers, jnp.asarray(sides))
    assert many.tolist() == [rows.output_size(layers, int(side)) for side in sides]

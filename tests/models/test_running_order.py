"""The order in which rows run: the numbers of their own order, for less work."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import images
from vgg_jax import create_model
from vgg_jax.models.layers import (
    BatchNorm,
    Bias,
    Conv,
    Layer,
    MaxPool,
    Relu,
    Statistics,
    in_running_order,
    relu,
)
from vgg_jax.models.network import ConvNet
from vgg_jax.models.vgg import LRN

SMALL = {"width": 1 / 16, "num_classes": 7, "dropout": 0.0}


def order(name: str, wanted: tuple[str, ...] = (), *, train: bool = False) -> list[str]:
    """The names of what runs; a bias is "+conv", statistics "sum bn" or "-sum bn"."""
    layers = nnx.eval_shape(
        lambda: create_model(name, rngs=nnx.Rngs(0), **SMALL)
    ).layers
    norms = [row.name for row in layers if isinstance(row, BatchNorm)]
    shown = []
    for row in in_running_order(layers, wanted, norms if train else ()):
        match row:
            case Bias(name):
                shown.append(f"+{name}")
            case Statistics(name, conv, signed):
                assert shown[-1] == conv
                shown.append(f"{'-' if signed else ''}sum {name}")
            case _:
                shown.append(row.name)
    return shown


def test_a_stage_ends_with_what_follows_its_pool() -> None:
    assert order("vgg11")[:6] == [
        *("conv1_1", "pool1", "+conv1_1", "relu1_1"),
        *("conv2_1", "pool2"),
    ]
    assert order("vgg13")[:8] == [
        *("conv1_1", "+conv1_1", "relu1_1"),
        *("conv1_2", "pool1", "+conv1_2", "relu1_2", "conv2_1"),
    ]
    assert order("nin_cifar")[6:10] == ["cccp2", "pool1", "+cccp2", "relu_cccp2"]


def test_normalization_stays_before_its_pool() -> None:
    assert order("vgg11_bn")[:5] == ["conv1_1", "+conv1_1", "bn1_1", "pool1", "relu1_1"]
    assert order("vgg11_lrn")[:5] == [
        *("conv1_1", "+conv1_1", "relu1_1", "norm1", "pool1")
    ]


def test_normalization_by_the_batch_follows_its_pool() -> None:
    assert order("vgg13_bn", train=True)[:9] == [
        *("conv1_1", "sum bn1_1", "bn1_1", "relu1_1"),
        *("conv1_2", "-sum bn1_2", "pool1", "bn1_2", "relu1_2"),
    ]
    for wanted, expected in {
        "conv1_1": ["conv1_1", "+conv1_1", "bn1_1", "pool1", "relu1_1"],
        "bn1_1": ["conv1_1", "sum bn1_1", "bn1_1", "pool1", "relu1_1"],
        "relu1_1": ["conv1_1", "sum bn1_1", "bn1_1", "relu1_1", "pool1"],
        "pool1": ["conv1_1", "sum bn1_1", "bn1_1", "relu1_1", "pool1"],
        "bn2_1": ["conv1_1", "-sum bn1_1", "pool1", "bn1_1", "relu1_1"],
    }.items():
        assert order("vgg11_bn", (wanted,), train=True)[:5] == expected


def test_a_map_that_is_wanted_is_made() -> None:
    plain = ["conv1_1", "+conv1_1", "relu1_1", "pool1"]
    assert order("vgg11", ("relu1_1",))[:4] == plain
    assert order("vgg11", ("pool1",))[:4] == plain
    assert order("vgg11", ("conv1_1",))[:4] == ["conv1_1", "+conv1_1", *plain[:1:-1]]
    assert order("vgg11", ("relu2_1",))[:4] == order("vgg11")[:4]


PAIR = (Conv("a", 5, 3, padding=1), Relu("relu_a"), Conv("b", 6, 3, padding=1))
REST = (Relu("relu_c"), Conv("d", 3, 1))
POOL = MaxPool("pool", 2, 2, ceil_mode=False)
OVERLAPPING = MaxPool("pool", 3, 2, ceil_mode=True)  # with partial windows at side 8


def drawn(rng: np.random.Generator, like: jax.Array, *, is_variance: bool) -> jax.Array:
    """Numbers of both signs, scales among them; variances are positive."""
    numbers = rng.normal(0.1, 0.4, like.shape)
    return jnp.asarray(np.abs(numbers) if is_variance else numbers, like.dtype)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        ((Relu("relu_b"), POOL, Conv("c", 4, 3)), "float32"),
        ((Relu("relu_b"), OVERLAPPING, Conv("c", 4, 3)), "float32"),
        ((POOL, Conv("c", 4, 3), MaxPool("end", 1, 1, False)), "float32"),
        ((BatchNorm("bn"), Relu("relu_b"), POOL, Conv("c", 4, 3)), "float32"),
        ((BatchNorm("bn"), Relu("relu_b"), OVERLAPPING, Conv("c", 4, 3)), "float32"),
        ((BatchNorm("bn"), POOL, Conv("c", 4, 3)), "float32"),
        ((POOL, BatchNorm("bn"), MaxPool("end", 2, 2, False)), "float32"),
        ((BatchNorm("bn"), BatchNorm("bn2"), POOL, Conv("c", 4, 3)), "float32"),
        ((Relu("relu_b"), BatchNorm("bn"), POOL, Conv("c", 4, 3)), "float32"),
        ((BatchNorm("bn"), Relu("relu_b"), Conv("c", 4, 3)), "float32"),
        ((Relu("relu_b"), LRN["caffe"], POOL, Conv("c", 4, 3)), "float32"),
        ((Relu("relu_b"), OVERLAPPING, Conv("c", 4, 3)), "bfloat16"),
    ],
)
def test_values_and_gradients_are_those_of_the_rows_order(
    stage: tuple[Layer, ...], dtype: str
) -> None:
    network = ConvNet((*PAIR, *stage, *REST), dtype=dtype, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(network)
    params = jax.tree.map_with_path(
        lambda path, a: drawn(rng, a, is_variance="var" in str(path)), state
    )
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)

    def last_map(params: Any, x: jax.Array, names: list[str]) -> Any:
        model = nnx.merge(graphdef, params)
        maps: dict[str, jax.Array] = {}
        x = model.run(x, model.layers, train=True, collect=maps, names=names)
        assert list(maps) == names
        return x.astype(jnp.float32), nnx.state(model, nnx.BatchStat)

    @jax.jit
    def in_both_orders(params: Any, x: jax.Array) -> list[Any]:
        results = []
        for names in ([], [row.name for row in network.layers]):
            run = functools.partial(last_map, names=names)
            y, vjp, moved = jax.vjp(run, params, x, has_aux=True)
            gradients = vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape))
            results.append((y, gradients, moved))
        return results

    early, plain = map(jax.tree.leaves, in_both_orders(params, x))
    largest = max(float(jnp.abs(array).max()) for array in plain)
    tolerance = 1e-6 if dtype == "float32" else 0.03
    for found, expected in zip(early, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def test_images_of_several_sizes_are_those_of_one_in_either_order() -> None:
    rows = (*PAIR, Relu("relu_b"), OVERLAPPING, Conv("c", 4, 3, padding=1), *REST)
    model = ConvNet(rows, num_classes=3, rngs=nnx.Rngs(0))
    x, sizes = jnp.asarray(images(2, 12, 14, 3)), jnp.asarray([[9, 14], [12, 8]])
    names = [row.name for row in rows]
    expected = model.features(x, names, sizes=sizes)["d"]
    np.testing.assert_allclose(model.score_map(x, sizes=sizes), expected, atol=1e-6)


def test_relu_is_that_of_jax_in_every_mode() -> None:
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0, -jnp.inf, jnp.inf])
    change = jnp.arange(1.0, 8.0)
    for mode in (jax.jvp, lambda f, x, g: jax.vjp(f, *x)[1](*g)):
        found, expected = (mode(f, (x,), (change,)) for f in (relu, jax.nn.relu))
        jax.tree.map(np.testing.assert_array_equal, found, expected)

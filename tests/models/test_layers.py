"""Each kind of row against the reference, and by hand."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from tests import reference
from vgg_jax.models import create_model, modules
from vgg_jax.models.layers import (
    AveragePool,
    Conv,
    Layer,
    MaxPool,
    Pool,
    Relu,
    average_pool,
    local_response_norm,
    max_pool,
    output_size,
    relu,
)

POOLS: dict[type[Pool], tuple[Any, Any]] = {
    MaxPool: (max_pool, np.max),
    AveragePool: (average_pool, np.mean),
}
KRIZHEVSKY = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
CAFFE = {"size": 5, "alpha": 1e-4 / 5, "beta": 0.75, "k": 1.0}


def negative(*shape: int) -> np.ndarray:
    """All below zero, so that a padding of zeros would win every maximum."""
    return -np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_pools_equal_the_reference(
    kind: type[Pool], ceil: bool, window: int, stride: int
) -> None:
    pool, reduce = POOLS[kind]
    row = kind("pool", window=window, stride=stride, ceil_mode=ceil)
    for height, width in ((3, 4), (5, 6), (8, 7)):
        x = negative(2, height, width, 3)
        want = reference.pool(x, window, stride, ceil, reduce)
        assert (row.output_size(height), row.output_size(width)) == want.shape[1:3]
        np.testing.assert_allclose(pool(jnp.asarray(x), row), want, rtol=1e-6)


def test_a_partial_window_by_hand() -> None:
    x = jnp.arange(-16.0, 0.0).reshape(1, 4, 4, 1)
    largest = max_pool(x, MaxPool("pool", 3, 2, ceil_mode=True))
    np.testing.assert_array_equal(largest[0, :, :, 0], [[-6, -5], [-2, -1]])
    mean = average_pool(x, AveragePool("pool", 3, 2, ceil_mode=True))
    np.testing.assert_array_equal(
        mean[0, :, :, 0], [[-11, -9.5], [-5, (-6 - 5 - 2 - 1) / 4]]
    )
    whole = max_pool(x, MaxPool("pool", 3, 2, ceil_mode=False))
    np.testing.assert_array_equal(whole[0, :, :, 0], [[-6]])


def test_a_window_larger_than_the_map_by_hand() -> None:
    x = jnp.array([-3.0, -1.0]).reshape(1, 1, 2, 1)
    pool = MaxPool("pool", 2, 2, ceil_mode=True)
    np.testing.assert_array_equal(max_pool(x, pool), [[[[-1]]]])
    np.testing.assert_array_equal(
        average_pool(x, AveragePool("pool", 2, 2, ceil_mode=True)), [[[[-2]]]]
    )


@pytest.mark.parametrize(
    ("row", "sides"),
    [
        (
            MaxPool("pool", 2, 2, ceil_mode=False),
            {1: 0, 2: 1, 3: 1, 4: 2, 7: 3, 224: 112},
        ),
        (
            MaxPool("pool", 2, 2, ceil_mode=True),
            {1: 1, 2: 1, 3: 2, 4: 2, 7: 4, 224: 112},
        ),
        (
            MaxPool("pool", 3, 2, ceil_mode=True),
            {1: 0, 2: 1, 3: 1, 4: 2, 54: 27, 27: 13},
        ),
        (MaxPool("pool", 3, 2, ceil_mode=False), {2: 0, 3: 1, 4: 1, 54: 26, 26: 12}),
        (Conv("conv", 8, kernel=3, padding=1), {1: 1, 2: 2, 224: 224}),
        (Conv("conv", 8, kernel=11, stride=4), {10: 0, 11: 1, 14: 1, 15: 2, 224: 54}),
        (Conv("conv", 8, kernel=7), {6: 0, 7: 1, 12: 6}),
        (Relu("relu"), {1: 1, 5: 5}),
    ],
)
def test_output_sizes_by_hand(row: Layer, sides: dict[int, int]) -> None:
    for side, want in sides.items():
        assert max(0, row.output_size(side)) == want, side
        assert output_size((row,), side) == want, side
    if isinstance(row, Conv) and row.stride == 4:
        assert output_size((row, MaxPool("pool", 3, 2, ceil_mode=True)), 10) == 0


@pytest.mark.parametrize("channels", [1, 3, 8, 13])
@pytest.mark.parametrize(
    ("constants", "name"), [(KRIZHEVSKY, "krizhevsky"), (CAFFE, "caffe")]
)
def test_local_response_norm_equals_the_reference(
    channels: int, constants: dict[str, Any], name: str
) -> None:
    x = np.random.default_rng(0).normal(0, 100, (2, 3, 2, channels))
    run = reference.Run({}, x)
    run.local_response_norm(name)
    got = local_response_norm(jnp.asarray(x, jnp.float32), **constants)
    np.testing.assert_allclose(got, run.x, rtol=1e-5)


def test_local_response_norm_by_hand() -> None:
    x = jnp.array([1.0, 2, 3, 4, 5, 6]).reshape(1, 1, 1, 6)
    got = local_response_norm(x, size=3, alpha=2.0, beta=0.5, k=1.0)
    sums = np.array([1 + 4, 1 + 4 + 9, 4 + 9 + 16, 9 + 16 + 25, 16 + 25 + 36, 25 + 36])
    np.testing.assert_allclose(got.ravel(), np.arange(1, 7) / np.sqrt(1 + 2 * sums))


def test_gradients_equal_finite_differences() -> None:
    rng = np.random.default_rng(0)
    x = (
        jnp.asarray(rng.permutation(2 * 4 * 5 * 6), jnp.float32).reshape(2, 4, 5, 6)
        / 20
    )
    functions = [
        partial(pool, pool=kind("pool", 3, 2, ceil_mode=True))
        for kind, (pool, _) in POOLS.items()
    ]
    functions.append(partial(local_response_norm, size=5, alpha=0.1, beta=0.75, k=2.0))
    for function in functions:
        check_grads(jax.jit(function), (x,), order=1, modes=["rev"], eps=1e-2)


def test_the_gradient_of_a_maximum_goes_to_the_largest_pixel() -> None:
    x = jnp.asarray(negative(1, 4, 4, 1))
    row = MaxPool("pool", 2, 2, ceil_mode=True)
    gradient = jax.grad(lambda x: max_pool(x, row).sum())(x)
    largest = max_pool(x, row).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(gradient, x == largest)


def test_the_derivative_of_relu_by_hand() -> None:
    """That of a number that is none is 1, as in PyTorch; in `jax.nn.relu` it is 0."""
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.nan])
    assert jax.vmap(jax.grad(relu))(x).tolist() == [0, 0, 0, 1, 1, 1]


def test_the_derivative_of_relu_is_made_of_its_result() -> None:
    def value_and_gradient(x: jax.Array, g: jax.Array) -> tuple[Any, Any]:
        y, vjp = jax.vjp(relu, x)
        return y, vjp(g)

    x = jnp.ones(8)
    text = jax.jit(value_and_gradient).lower(x, x).compile().as_text()
    (compared,) = re.findall(r" compare\(%(\w+)", text)
    assert compared.startswith("max")


@pytest.mark.parametrize(
    ("name", "is_measured"), [("vgg11", False), ("vgg11_bn", True)]
)
def test_only_behind_batch_statistics_a_relu_derives_by_its_input(
    name: str, is_measured: bool
) -> None:
    model = create_model(name, width=1 / 16, num_classes=3, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    first = model.layers[: 1 + [row.name for row in model.layers].index("relu1_1")]

    def loss(x: jax.Array, state: Any) -> jax.Array:
        return nnx.merge(graphdef, state).run(x, first, train=True).sum()

    x = jnp.ones((2, 8, 8, 3))
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, state).as_text()
    directions = set(re.findall(r"stablehlo.compare +(NE|GT),", text))
    assert ("GT" in directions, "NE" in directions) == (is_measured, not is_measured)


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    conv = modules.Conv(1, 1, (1, 1), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 3, 1367, 1), jnp.bfloat16)

    def total(conv: modules.Conv) -> jax.Array:
        y = conv.add_bias(x)
        assert y.dtype == jnp.bfloat16
        return y.astype(jnp.float32).sum()

    assert nnx.grad(total)(conv).bias[...].tolist() == [4101]  # in bfloat16 4096


def test_bfloat16_stays_bfloat16() -> None:
    x = jnp.asarray(negative(1, 5, 5, 8), jnp.bfloat16)
    for kind, (pool, _) in POOLS.items():
        assert pool(x, kind("pool", 3, 2, ceil_mode=True)).dtype == jnp.bfloat16
    assert local_response_norm(x, **KRIZHEVSKY).dtype == jnp.bfloat16

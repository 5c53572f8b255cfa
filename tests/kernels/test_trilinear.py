"""The rules of every transformation, on a product of matrices written three times."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.kernels.trilinear import derivative

SHAPES = ((2, 3), (3, 4), (2, 4))


class Matrices:
    """<a @ b, c>: its derivatives are c @ b.T, a.T @ c and a @ b."""

    is_linear = (True, True, True)

    def shape(self, wanted: int, first: Any, second: Any) -> tuple[int, ...]:
        rows, columns = (first[1], second[1])
        return [(second[0], first[0]), (rows, columns), (first[0], columns)][wanted]

    def derivative(self, wanted: int, first: Any, second: Any) -> jax.Array:
        return [
            lambda b, c: c @ b.T,
            lambda a, c: a.T @ c,
            lambda a, b: a @ b,
        ][wanted](first, second)


class Signs:
    """<sign(a) b, c>: the signs do not change with a."""

    is_linear = (False, True, True)

    def shape(self, wanted: int, first: Any, second: Any) -> tuple[int, ...]:
        return tuple(first)

    def derivative(self, wanted: int, first: Any, second: Any) -> jax.Array:
        return jnp.sign(first) * second


MATRICES, SIGNS = Matrices(), Signs()


def ours(wanted: int) -> Any:
    slots = [slot for slot in range(3) if slot != wanted]
    return lambda *arrays: derivative(MATRICES, dict(zip(slots, arrays, strict=True)))


def theirs(wanted: int) -> Any:
    return lambda *arrays: MATRICES.derivative(wanted, *arrays)


def every_mode(function: Any, *args: jax.Array) -> Any:
    """Value and gradients, and the change of both."""

    def gradients(*args: jax.Array) -> Any:
        value, transpose = jax.vjp(function, *args)
        return transpose(value)

    return jax.jvp(function, args, args), jax.jvp(gradients, args, args)


# The axis that each `jax.vmap` takes of the first and of the second array, from the
# innermost one on.
AXES = [[(1, 0)], [(2, None), (None, 0)], [(None, 1), (0, 0)]]


@pytest.mark.parametrize("wanted", range(3))
def test_every_mode_equals_that_of_jax(wanted: int) -> None:
    """Alone, and under vmaps of one of the arrays or of both."""
    given = [shape for slot, shape in enumerate(SHAPES) if slot != wanted]
    cases = []
    for axes in ([], *AXES):
        shapes = [list(shape) for shape in given]
        for pair in axes:
            for shape, axis in zip(shapes, pair, strict=True):
                if axis is not None:
                    shape.insert(axis, 5)
        rng = np.random.default_rng(0)
        cases.append((axes, [jnp.asarray(rng.normal(size=shape)) for shape in shapes]))

    @functools.partial(jax.jit, static_argnums=0)
    def results(function: Any, cases: Any) -> Any:
        return [
            every_mode(functools.reduce(jax.vmap, axes, function), *args)
            for axes, args in zip(([], *AXES), cases, strict=True)
        ]

    args = [args for _, args in cases]
    for found, expected in zip(
        jax.tree.leaves(results(ours(wanted), args)),
        jax.tree.leaves(results(theirs(wanted), args)),
        strict=True,
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_reverse_mode_takes_the_derivative_that_is_asked_for() -> None:
    a, b = jnp.ones(SHAPES[0]), jnp.ones(SHAPES[1])
    gradients = jax.grad(lambda *args: ours(2)(*args).sum(), argnums=(0, 1))
    text = str(jax.make_jaxpr(gradients)(a, b))
    for wanted in (0, 1):
        assert f"wanted={wanted}" in text
    assert "dot_general" not in text


def test_what_is_not_linear_has_no_derivative() -> None:
    a, b = jnp.array([2.0, -3.0]), jnp.array([5.0, 7.0])

    def signed(a: jax.Array, b: jax.Array) -> jax.Array:
        return derivative(SIGNS, {0: a, 1: b})

    value, change = jax.jvp(signed, (a, b), (a, jnp.ones(2)))
    np.testing.assert_array_equal(value, [5, -7])
    np.testing.assert_array_equal(change, [1, -1])
    np.testing.assert_array_equal(jax.jvp(lambda a: signed(a, b), (a,), (a,))[1], 0)
    da, db = jax.grad(lambda a, b: signed(a, b).sum(), argnums=(0, 1))(a, b)
    np.testing.assert_array_equal(da, 0)
    np.testing.assert_array_equal(db, [1, -1])

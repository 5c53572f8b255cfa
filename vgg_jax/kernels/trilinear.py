"""This module lets a function's own rules compute derivatives in every mode.

`jax.custom_vjp` lets a function say how its gradient is computed, and then forbids
forward mode. What is here works in both modes and at every order. It rests on one
number made of three arrays, linear in each of them: for a convolution y = conv(x, k)
that is <conv(x, k), g>. Its derivative by one of the arrays is a function of the other
two: by g the convolution itself, by x and by k the gradients of x and of k. Whichever
of the three is transposed with respect to an argument, another one of them results, so
a rule for these derivatives is all that JAX has to know.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir, partial_eval
from jax.sharding import NamedSharding, PartitionSpec

SLOTS = (0, 1, 2)  # the places of the three arrays


class Form(Protocol):
    """A number made of three arrays: the hashable rule, which holds no array."""

    @property
    def is_linear(self) -> tuple[bool, bool, bool]:
        """For each array, whether the number is linear in it.

        The derivative by an array in which it is not linear is taken as zero.
        """

    def shape(
        self, wanted: int, first: Sequence[int], second: Sequence[int]
    ) -> tuple[int, ...]:
        """Returns the shape of array `wanted`, from the shapes of the two others."""

    def derivative(self, wanted: int, first: jax.Array, second: jax.Array) -> jax.Array:
        """Computes the derivative by array `wanted` from the two others, in order."""


# For each axis that `jax.vmap` has added, outermost first: which arrays have it. One
# that has not is the same for every index, and its derivative is the sum over them.
Axes = tuple[tuple[bool, bool, bool], ...]

_derivative = Primitive("trilinear_derivative")


def derivative(form: Form, given: Mapping[int, jax.Array], axes: Axes = ()) -> Any:
    """Returns the derivative of a form by the array that is not given.

    Args:
        form: the number made of three arrays.
        given: the two other arrays by their slots, of the same dtype.
        axes: leading axes of the arrays; `jax.vmap` adds them.
    """
    (wanted,) = set(SLOTS) - given.keys()
    first, second = (given[slot] for slot in _others(wanted))
    return _derivative.bind(first, second, form=form, wanted=wanted, axes=axes)


def _others(wanted: int) -> tuple[int, int]:
    first, second = (slot for slot in SLOTS if slot != wanted)
    return first, second


def _evaluate(
    first: jax.Array, second: jax.Array, *, form: Form, wanted: int, axes: Axes
) -> jax.Array:
    """Computes the derivative by the form's own rule, under a vmap for each axis."""

    def function(first: jax.Array, second: jax.Array) -> jax.Array:
        return form.derivative(wanted, first, second)

    for has_axis in reversed(axes):
        function = _over_axis(function, has_axis, wanted)
    return function(first, second)


def _evaluate_lean(first: jax.Array, second: jax.Array, **parameters: Any) -> Any:
    """Computes what `_evaluate` does, without what the result does not need.

    An example is the value of a function whose gradient is taken.
    """
    function = functools.partial(_evaluate, **parameters)
    closed = jax.make_jaxpr(function)(first, second)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    (result,) = jaxpr_as_fun(closed.replace(jaxpr=jaxpr))(first, second)
    return result


def _over_axis(function: Any, has_axis: tuple[bool, bool, bool], wanted: int) -> Any:
    in_axes = tuple(0 if has_axis[slot] else None for slot in _others(wanted))
    mapped = jax.vmap(function, in_axes=in_axes)
    if has_axis[wanted]:
        return mapped
    return lambda first, second: mapped(first, second).sum(0)


def _shape_and_dtype(
    first: Any, second: Any, *, form: Form, wanted: int, axes: Axes
) -> Any:
    """Returns the type of the result from the types of the operands."""
    slots = _others(wanted)
    shapes = dict(zip(slots, (first.shape, second.shape), strict=True))
    leading = []
    for has_axis in axes:
        sizes = {}
        for slot, shape in shapes.items():
            if has_axis[slot]:
                sizes[slot], *shapes[slot] = shape
        if has_axis[wanted]:
            leading.append(next(iter(sizes.values())))
    shape = (*leading, *form.shape(wanted, *shapes.values()))
    whole = PartitionSpec(*[None] * len(shape))
    sharding = NamedSharding(first.sharding.mesh, whole)
    return jax.core.ShapedArray(shape, first.dtype, sharding=sharding)


def _differentiate(
    primals: tuple[Any, Any],
    tangents: tuple[Any, Any],
    *,
    form: Form,
    wanted: int,
    axes: Axes,
) -> tuple[jax.Array, Any]:
    """Differentiates in forward mode: sums a term for each array that changes."""
    slots = _others(wanted)
    given = dict(zip(slots, primals, strict=True))
    value = derivative(form, given, axes)
    terms = [
        derivative(form, given | {slot: tangent}, axes)
        for slot, tangent in zip(slots, tangents, strict=True)
        if form.is_linear[slot] and type(tangent) is not ad.Zero
    ]
    if not terms:
        return value, ad.Zero(jax.typeof(value).to_tangent_aval())
    return value, terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _transpose(
    cotangent: Any, *operands: Any, form: Form, wanted: int, axes: Axes
) -> list[Any]:
    """Transposes for reverse mode: derives by the operand that is asked for."""
    slots = _others(wanted)
    asked = next(i for i in (0, 1) if ad.is_undefined_primal(operands[i]))
    results: list[Any] = [None, None]
    if type(cotangent) is ad.Zero:
        results[asked] = ad.Zero(operands[asked].aval.to_tangent_aval())
    else:
        given = {wanted: cotangent, slots[1 - asked]: operands[1 - asked]}
        results[asked] = derivative(form, given, axes)
    return results


def _add_axis(
    operands: Sequence[jax.Array],
    positions: Sequence[int | None],
    *,
    form: Form,
    wanted: int,
    axes: Axes,
) -> tuple[jax.Array, int]:
    """Maps for `jax.vmap`: adds a leading axis to the operands that have it."""
    has_axis = [True, True, True]
    given = {}
    for slot, array, position in zip(_others(wanted), operands, positions, strict=True):
        has_axis[slot] = position is not None
        given[slot] = array if position is None else jnp.moveaxis(array, position, 0)
    a, b, c = has_axis
    return derivative(form, given, ((a, b, c), *axes)), 0


_derivative.def_impl(
    jax.jit(_evaluate, static_argnames=("form", "wanted", "axes")),
)
_derivative.def_abstract_eval(_shape_and_dtype)
ad.primitive_jvps[_derivative] = _differentiate
ad.primitive_transposes[_derivative] = _transpose
batching.primitive_batchers[_derivative] = _add_axis
mlir.register_lowering(
    _derivative, mlir.lower_fun(_evaluate_lean, multiple_results=False)
)

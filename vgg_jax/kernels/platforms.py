"""This module chooses the form of an operation where a program is lowered.

A form computes what the plain operation computes, values and gradients, and is faster
on some platforms. A program that is lowered for several has a form for each.
"""

from collections.abc import Callable

import jax
from jax import lax
from jax.export import is_symbolic_dim
from jax.sharding import AxisType

GPUS: tuple[str, ...] = ("cuda", "rocm")

Form = Callable[..., jax.Array]


def choose(
    *arrays: jax.Array, plain: Form, cpu: Form | None = None, gpu: Form | None = None
) -> jax.Array:
    """Computes an operation by the form for the platform of the program.

    Args:
        arrays: the operands.
        plain: the operation on TPU, and where no other form is given.
        cpu: on CPU.
        gpu: on `GPUS`.
    """
    forms = {"cpu": cpu} | dict.fromkeys(GPUS, gpu)
    given = {name: form for name, form in forms.items() if form is not None}
    return lax.platform_dependent(*arrays, default=plain, **given)


def can_choose(*arrays: jax.Array) -> bool:
    """Returns whether operations on these arrays can have forms.

    Forms do not keep the types that arrays have under `jax.shard_map` and on a mesh of
    explicit axes, and they are chosen by sides in numbers, which the symbolic ones of
    `jax.export` are not.
    """
    return all(
        kind == AxisType.Auto
        for array in arrays
        for kind in jax.typeof(array).sharding.mesh.axis_types
    ) and not any(map(is_symbolic_dim, (n for array in arrays for n in array.shape)))


def once(x: jax.Array) -> jax.Array:
    """Has XLA compute an array once, not again for each operation that reads it."""
    return lax.optimization_barrier(x)


def as_it_is(x: jax.Array) -> jax.Array:
    """Returns its argument."""
    return x

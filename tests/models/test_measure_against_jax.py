"""The tables against what JAX itself infers, traces and counts."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vgg_jax.models import MODELS, ConvNet, create_model
from vgg_jax.models.layers import Conv
from vgg_jax.models.measure import summary

# Floor and ceil pools differ at some, H and W at others.
SIZED = [
    (name, size)
    for name in MODELS
    for size in ((33, 47) if name == "nin_cifar" else (231, 300), (224, 224))
]


@functools.cache
def abstract(name: str) -> ConvNet:
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))


def inputs(name: str, size: tuple[int, int]) -> tuple[ConvNet, jax.ShapeDtypeStruct]:
    """A model without arrays, and one image as a shape."""
    return abstract(name), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"num_classes": 7, "in_channels": 1}])
def test_parameters_are_those_of_the_model(name: str, options: dict[str, int]) -> None:
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    found: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        found[path[0]] = found.get(path[0], 0) + math.prod(leaf.get_value().shape)
    measured = summary(name, **options)
    rows = {row.layer: row.parameters for row in measured.layers if row.parameters}
    assert rows == found
    assert measured.parameters == sum(found.values())


def equations(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "cond":
            # A choice by platform: the plain form, for all but the CPU, comes last.
            yield from equations(equation.params["branches"][-1].jaxpr)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def multiply_adds_of(jaxpr) -> int:
    """Products of every convolution and matrix product that JAX traced."""
    total = 0
    for equation in equations(jaxpr):
        (out, *_), operands = equation.outvars, equation.invars
        if equation.primitive.name == "conv_general_dilated":
            out_features = equation.params["dimension_numbers"].rhs_spec[0]
            kernel = list(operands[1].aval.shape)
            kernel.pop(out_features)
            total += math.prod(out.aval.shape) * math.prod(kernel)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sides = (operands[0].aval.shape[axis] for axis in contracted)
            total += math.prod(out.aval.shape) * math.prod(sides)
    return total


@pytest.mark.parametrize(("name", "size"), SIZED)
def test_outputs_and_multiply_adds_are_those_of_the_trace(
    name: str, size: tuple[int, int]
) -> None:
    names = tuple(layer.name for layer in abstract(name).layers)
    traced, shapes = jax.make_jaxpr(
        lambda model, x: model.features(x, names), return_shape=True
    )(*inputs(name, size))
    measured = summary(abstract(name), size)
    assert measured.image == (*size, 3)
    assert {row.layer: (1, *row.output) for row in measured.layers} == {
        layer: found.shape for layer, found in shapes.items()
    }
    assert measured.multiply_adds == multiply_adds_of(traced.jaxpr)


def inside(size: int, out: int, layer: Conv) -> int:
    """Kernel positions over all outputs along one side that fall on the map itself."""
    return sum(
        0 <= cell * layer.stride - layer.padding + tap < size
        for cell in range(out)
        for tap in range(layer.kernel)
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg16", (224, 224)), ("vgg13_bn", (256, 320)), ("nin_imagenet", (227, 227))],
)
def test_multiply_adds_agree_with_xla(name: str, size: tuple[int, int]) -> None:
    # XLA counts two operations a product, leaves products with padding out and adds the
    # element-wise work, which is below half a percent here. For CPU, some convolutions
    # are Winograd's, of fewer products.
    run = jax.jit(lambda model, x: model(x))
    traced = run.trace(*inputs(name, size))
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    rows = summary(name, size).layers
    maps = [(*size, 3), *(row.output for row in rows)]
    products = sum(
        inside(before[0], row.output[0], layer)
        * inside(before[1], row.output[1], layer)
        * (row.multiply_adds // (row.output[0] * row.output[1] * row.kernel**2))
        for layer, before, row in zip(abstract(name).layers, maps, rows, strict=False)
        if isinstance(layer, Conv)
    )
    assert 2 * products < cost["flops"] < 1.005 * 2 * products


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [("vgg16", {}, 224), ("vgg11", {"fc_kernel": 1}, 32), ("nin_imagenet", {}, 39),
     ("vgg11", {"fc_kernel": 2, "ceil_mode": True}, 33)],
)  # fmt: skip
def test_too_small_an_image_fails_as_the_model_does(
    name: str, options: dict[str, int], needed: int
) -> None:
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    for size in ((needed - 1, needed), (needed, needed - 1)):
        message = f"at least {needed}x{needed} pixels, got {size[0]}x{size[1]}"
        with pytest.raises(ValueError, match=message):
            summary(name, size, **options)
        images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda model, x: model(x), model, images)
    assert summary(name, needed, **options).layers[-1].output[:2] == (1, 1)

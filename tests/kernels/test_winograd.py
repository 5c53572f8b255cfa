"""Winograd's convolution against plain `jax.lax`: values, gradients, and its choice."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.kernels import test_forms
from vgg_jax.kernels import convolution, winograd

Pads = winograd.Pads

SAME = ((1, 1), (1, 1))
SHAPES = [
    ((8, 8), SAME),
    ((7, 9), SAME),
    ((1, 2), SAME),
    ((5, 6), ((0, 0), (0, 0))),
    ((4, 5), ((2, 2), (2, 2))),
    ((6, 7), ((1, 0), (2, 1))),
]


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain(x: jax.Array, kernel: jax.Array, padding: Pads) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolution.conv(x, kernel, stride=1, padding=1)


def lowered(
    function: Callable[..., jax.Array],
    *shapes: tuple[int, ...],
    platform: str = "cpu",
    dtype: str = "float32",
) -> str:
    """The program of a function of arrays of these shapes."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in shapes]
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes Winograd's form for every 3x3 convolution."""
    for name in ("", "_GRADIENT", "_WORK", "_WORK_OF_FEW"):
        monkeypatch.setattr(convolution, f"_WINOGRAD{name}", 0)


@pytest.mark.parametrize(("size", "padding"), SHAPES)
def test_in_float64_it_is_the_convolution(size: tuple[int, int], padding: Pads) -> None:
    with jax.enable_x64(True):
        x = normal(0, 2, *size, 3, dtype="float64")
        kernel = normal(1, 3, 3, 3, 4, dtype="float64")
        expected, vjp = jax.vjp(lambda kernel: plain(x, kernel, padding), kernel)
        g = normal(2, *expected.shape, dtype="float64")
        found = winograd.convolve(x, kernel, padding)
        assert found.dtype == jnp.float64
        chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)
        found = winograd.kernel_gradient(x, g, padding)
        chex.assert_trees_all_close(found, vjp(g)[0], rtol=1e-12, atol=1e-12)


def test_in_float32_it_is_as_exact_as_the_plain_one() -> None:
    def error(found: jax.Array, expected: jax.Array) -> float:
        difference = np.asarray(found, np.float64) - np.asarray(expected)
        return float(np.abs(difference).max() / np.abs(expected).max())

    # A layer of VGG-16 on a smaller map, its pixels not negative, as after a ReLU.
    with jax.enable_x64(True):
        x = jnp.abs(normal(0, 2, 14, 14, 512, dtype="float64"))
        kernel = normal(1, 3, 3, 512, 512, dtype="float64") / 48
        g = normal(2, 2, 14, 14, 512, dtype="float64")
        exact, vjp = jax.vjp(lambda kernel: plain(x, kernel, SAME), kernel)
        gradient = vjp(g)[0]
        x, kernel, g = (a.astype(jnp.float32) for a in (x, kernel, g))
        ours = error(winograd.convolve(x, kernel, SAME), exact)
        theirs = error(plain(x, kernel, SAME), exact)
        assert 0 < ours < 2e-6 and ours < 8 * theirs
        ours = error(winograd.kernel_gradient(x, g, SAME), gradient)
        assert 0 < ours < 2e-6


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("size", "padding"), [((4, 4), 1), ((7, 9), 1), ((6, 7), 0), ((5, 4), 2)]
)
def test_the_layer_and_its_gradients_equal_lax(
    size: tuple[int, int], padding: int
) -> None:
    test_forms.assert_same_conv(
        normal(0, 3, *size, 4), normal(1, 3, 3, 4, 5), stride=1, padding=padding
    )


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("strides", "padding"),
    [
        ((1, 1), ((1, 0), (2, 1))),
        ((1, 1), ((0, 2), (0, 1))),
        ((2, 2), ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (1, 1))),
        ((2, 1), ((0, 0), (1, 0))),
    ],
)
def test_every_stride_and_padding_has_the_gradients_of_lax(
    strides: tuple[int, int], padding: Pads
) -> None:
    x, kernel = normal(0, 3, 9, 10, 4), normal(1, 3, 3, 4, 5)
    options = {"window_strides": strides, "padding": padding}
    options["dimension_numbers"] = test_forms.DIMENSIONS
    found, expected = (
        test_forms.value_and_gradients(conv, x, kernel, **options)
        for conv in (convolution.conv_general_dilated, lax.conv_general_dilated)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_wide_layer_of_stride_2_keeps_the_plain_form() -> None:
    def gradients(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        return jax.grad(
            lambda *args: convolution.conv(*args, stride=2, padding=1).sum(),
            argnums=(0, 1),
        )(x, kernel)

    shapes = ((8, 28, 28, 256), (3, 3, 256, 256))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = jax.eval_shape(gradients, *arguments)
    assert tuple(array.shape for array in found) == shapes


@pytest.mark.usefixtures("always")
def test_derivatives_of_every_mode_and_order_equal_lax() -> None:
    def twice(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            x = conv(x, kernel, stride=1, padding=1)
            return jnp.sum(conv(jax.nn.softplus(x), kernel, stride=1, padding=1) ** 2)

        return loss

    x, kernel = normal(0, 4, 4, 5, 4), normal(1, 3, 3, 4, 4)

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array) -> dict[str, list[jax.Array]]:
        return {
            derivative.__name__: [
                derivative(twice(conv), x, kernel)
                for conv in (convolution.conv, test_forms.plain_conv)
            ]
            for derivative in test_forms.DERIVATIVES
        }

    assert "stablehlo.convolution" not in lowered(layer, x.shape, kernel.shape)
    for found, expected in run(x, kernel).values():
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            scale = jnp.abs(b).max()
            chex.assert_trees_all_close(a / scale, b / scale, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_a_batch_that_devices_share_stays_shared() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = normal(0, 16, 5, 6, 4), normal(1, 3, 3, 4, 4)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(layer(x, kernel) ** 2)

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    expected = step(x, kernel)
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    compiled = step.lower(rows, whole).compile()
    chex.assert_trees_all_close(compiled(rows, whole), expected, rtol=1e-4, atol=1e-4)
    text = compiled.as_text()
    assert "all-reduce" in text  # of the kernel's gradient alone:
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize(
    ("images", "side", "channels", "features", "forms"),
    [
        # VGG-16 in batches of 4: which of the layer, the gradients of its input and of
        # its kernel have the form.
        (4, 224, 64, 64, (False, False, False)),
        (4, 112, 64, 128, (False, False, True)),
        (4, 112, 128, 128, (False, False, True)),
        (4, 56, 128, 256, (True, True, True)),
        (4, 28, 512, 512, (True, True, True)),
        (4, 14, 512, 512, (True, True, True)),
        (3, 64, 256, 256, (False, True, True)),
        (1, 28, 512, 512, (False, True, True)),
        (1, 14, 512, 512, (False, False, False)),
        (128, 4, 128, 128, (False, False, True)),
        (127, 4, 128, 128, (False, False, False)),
        (4096, 3, 512, 512, (False, False, False)),  # tiles that are half empty
    ],
)
def test_the_shape_decides(
    images: int, side: int, channels: int, features: int, forms: tuple[bool, ...]
) -> None:
    shapes = ((images, side, side, channels), (3, 3, channels, features))

    def input_gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
        output = jnp.ones((images, side, side, features))
        return jax.vjp(lambda x: layer(x, kernel), x)[1](output)[0]

    def gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
        output = jnp.ones((images, side, side, features))
        return jax.vjp(lambda kernel: layer(x, kernel), kernel)[1](output)[0]

    functions = (layer, input_gradient, gradient)
    # Each form is four batches of products.
    counts = [lowered(f, *shapes).count("stablehlo.dot_general") for f in functions]
    assert tuple(count == 4 for count in counts) == forms
    for function in functions:
        for platform in ("tpu", "cuda"):
            text = lowered(function, *shapes, platform=platform)
            assert "dot_general" not in text
            assert text.count("stablehlo.convolution") == 1


def test_sixteen_bits_keep_the_plain_one() -> None:
    shapes = ((16, 28, 28, 512), (3, 3, 512, 512))
    assert "stablehlo.convolution" not in lowered(layer, *shapes)
    assert "stablehlo.convolution" in lowered(layer, *shapes, dtype="bfloat16")

    def gradients(x: jax.Array, kernel: jax.Array) -> jax.Array:
        output, vjp = jax.vjp(layer, x, kernel)
        return vjp(jnp.ones_like(output))

    def products(dtype: str) -> int:
        text = lowered(gradients, *shapes, dtype=dtype)
        return text.count("stablehlo.dot_general")

    # Of each of the two gradients four batches of them; of 16 bits the kernel's alone
    # is a product.
    assert (products("float32"), products("bfloat16")) == (8, 1)

"""Forms of operations against plain `jax.lax`: numbers, gradients, where they are."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vgg_jax.kernels import convolution, platforms, pooling

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain_conv(x, kernel, *, stride, padding):
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS
    )


def plain_max_pool(x, *, window, stride, padding):
    return lax.reduce_window(
        x,
        x.dtype.type(-np.inf),
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *padding, (0, 0)),
    )


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(function, *args, **options):
    """The value, and the gradients of its product with fixed numbers."""

    @jax.jit
    def run(*args):
        value, vjp = jax.vjp(lambda *args: function(*args, **options), *args)
        return value, vjp(normal(9, *value.shape, dtype=value.dtype))

    return run(*args)


def assert_same_conv(x, kernel, *, rtol=1e-5, **options):
    found = value_and_gradients(convolution.conv, x, kernel, **options)
    expected = value_and_gradients(plain_conv, x, kernel, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(
            np.asarray(a, np.float64) / scale,
            np.asarray(b, np.float64) / scale,
            atol=rtol,
        )


@pytest.fixture(params=["cpu", "gpu"])
def forms(request, monkeypatch):
    """Has programs for CPU use the forms of CPUs, or those of GPUs."""
    if request.param == "gpu":
        monkeypatch.setattr(platforms, "GPUS", ("cpu",))
    return request.param


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding"),
    [
        # gram
        ((7, 9), 5, 3, 1, 1),
        ((8, 5), 5, 3, 1, 0),
        ((6, 7), 4, 5, 1, 2),
        ((9, 7), 4, 1, 1, 0),
        ((5, 4), 4, 3, 1, 2),
        ((5, 4), 4, 1, 1, 1),
        ((12, 13), 4, 11, 1, 2),
        # strided
        ((27, 24), 3, 11, 4, 0),
        ((23, 26), 1, 11, 4, 2),
        ((8, 9), 4, 3, 2, 1),
        ((9, 8), 4, 5, 4, 2),
        ((9, 8), 4, 1, 2, 0),
        ((7, 8), 4, 2, 3, 1),
        # few channels; blocks of 1, 2, 3 and 4 columns
        ((8, 7), 1, 3, 1, 1),
        ((8, 7), 3, 3, 1, 1),
        ((6, 10), 1, 5, 1, 2),
        ((5, 9), 3, 3, 1, 0),
        ((4, 9), 2, 3, 1, 1),
        ((6, 8), 3, 3, 1, 1),
        ((12, 13), 1, 11, 1, 0),
        # dense
        ((2, 2), 4, 3, 1, 1),
        ((1, 1), 4, 3, 1, 1),
        ((1, 3), 4, 3, 1, 1),
        ((4, 1), 4, 5, 1, 2),
        ((2, 2), 4, 3, 1, 2),
        ((2, 1), 4, 1, 1, 1),
        ((1, 1), 4, 1, 1, 0),
        ((7, 5), 4, (7, 5), 1, 0),
    ],
)
@pytest.mark.usefixtures("forms")
def test_convolution_equals_lax(size, channels, kernel, stride, padding):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = normal(0, 3, *size, channels)
    weights = normal(1, *kernel, channels, 4)
    assert_same_conv(x, weights, stride=stride, padding=padding)


@pytest.mark.parametrize(
    ("images", "cache", "groups", "loops"),
    [
        (6, 5_000, 1, 1),  # 2 images at a time, of 6 x 7 pixels x (3 x 4 + 3 x 4)
        (6, 2**20, 1, 0),
        (6, 1_000, 1, 0),  # not even one image fits
        (98, 2**20, 2, 0),  # over 4,096 pixels
        (99, 2**20, 1, 0),
        (196, 512_000, 2, 1),  # 98 images at a time
    ],
)
def test_weight_gradient_in_parts(monkeypatch, images, cache, groups, loops):
    monkeypatch.setattr(convolution, "_CACHE", cache)
    x, kernel = normal(0, images, 6, 7, 4), normal(1, 3, 3, 4, 4)
    assert_same_conv(x, kernel, stride=1, padding=1)
    geometry = convolution._Geometry((6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)))
    traced = str(jax.make_jaxpr(lambda x, g: convolution._gram(x, g, geometry))(x, x))
    assert traced.count("scan[") == loops
    assert f":f32[{groups},12,12] = dot_general" in traced


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding"),
    [
        ((6, 7), 4, 3, 1, 1),  # gram
        ((8, 9), 4, 3, 2, 1),  # strided
        ((8, 7), 3, 3, 1, 1),  # few channels
        ((2, 2), 4, 3, 1, 1),  # dense
        ((5, 4), 4, 1, 1, 0),  # one product a pixel
        ((7, 5), 4, (7, 5), 1, 0),  # one window
    ],
)
def test_an_empty_batch_has_no_outputs_and_a_gradient_of_zero(
    size, channels, kernel, stride, padding
):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, weights = jnp.zeros((0, *size, channels)), normal(1, *kernel, channels, 4)
    options = {"stride": stride, "padding": padding}
    y, (dx, dweights) = value_and_gradients(convolution.conv, x, weights, **options)
    assert y.shape == plain_conv(x, weights, **options).shape
    assert dx.shape == x.shape
    chex.assert_trees_all_equal(dweights, jnp.zeros_like(weights))


def test_an_empty_batch_is_pooled():
    x = jnp.zeros((0, 7, 6, 3))
    options = {"window": 3, "stride": 2, "padding": ((0, 1), (0, 0))}
    y, (dx,) = value_and_gradients(pooling.max_pool, x, **options)
    assert (y.shape, dx.shape) == ((0, 3, 2, 3), x.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("cache", "loops"), [(2_500, 1), (2**20, 0)])
def test_a_weight_gradient_of_sixteen_bits_is_summed_in_float32(
    monkeypatch, dtype, cache, loops
):
    """Sums of 8 bits stay behind from 256 numbers of about one on."""
    monkeypatch.setattr(convolution, "_CACHE", cache)
    x, g = (abs(normal(seed, 48, 6, 7, 4, dtype=dtype)) for seed in (0, 1))
    geometry = convolution._Geometry((6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)))
    gram = functools.partial(convolution._gram, geometry=geometry)
    traced = str(jax.make_jaxpr(gram)(x, g))
    assert traced.count("scan[") == loops
    assert "preferred_element_type=float32" in traced
    _, vjp = jax.vjp(
        lambda kernel: plain_conv(x.astype("float32"), kernel, stride=1, padding=1),
        jnp.zeros((3, 3, 4, 4)),
    )
    (expected,) = vjp(g.astype("float32"))
    found = jax.jit(gram)(x, g)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.astype("float32"), expected, rtol=5e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("side", [6, 2])
def test_convolution_keeps_the_dtype(dtype, side):
    x, kernel = normal(0, 2, side, side, 4), normal(1, 3, 3, 4, 5)
    assert_same_conv(
        x.astype(dtype), kernel.astype(dtype), stride=1, padding=1, rtol=1e-2
    )


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [
        (2, 2, ((0, 0), (0, 0))),
        (2, 2, ((0, 1), (0, 1))),
        (3, 2, ((0, 0), (0, 0))),
        (3, 2, ((0, 1), (0, 0))),
        (3, 2, ((1, 1), (1, 0))),
        (3, 1, ((1, 1), (1, 1))),
        (5, 2, ((0, 0), (0, 2))),
        (2, 3, ((0, 0), (0, 0))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("size", [(7, 7), (8, 5)])
@pytest.mark.usefixtures("forms")
def test_max_pool_equals_lax(window, stride, padding, size):
    options = {"window": window, "stride": stride, "padding": padding}
    # Whole numbers: most windows have a tie.
    x = jnp.round(normal(0, 2, *size, 3))
    change = normal(3, *x.shape)

    def both_modes(pool):
        _, after = jax.jvp(lambda x: pool(x, **options), (x,), (change,))
        return after, value_and_gradients(pool, x, **options)

    found, expected = jax.jit(
        lambda: (both_modes(pooling.max_pool), both_modes(plain_max_pool))
    )()
    chex.assert_trees_all_close(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "stride", "size"),
    [  # The last of the pixels that are chosen have the numbers 143, 127, 128 and 130.
        (12, 12, (13, 24)),
        (8, 15, (39, 24)),
        (9, 15, (39, 24)),
        (2, 129, (131, 3)),
    ],
)
@pytest.mark.usefixtures("forms")
def test_a_window_of_about_as_many_pixels_as_a_byte_has_numbers(window, stride, size):
    test_max_pool_equals_lax(window, stride, ((0, 0), (0, 0)), size=size)


def test_max_pool_gives_a_tie_to_its_first_pixel():
    x = jnp.zeros((1, 4, 4, 1))
    _, (found,) = value_and_gradients(
        pooling.max_pool, x, window=2, stride=2, padding=((0, 0), (0, 0))
    )
    assert np.flatnonzero(np.asarray(found)).tolist() == [0, 2, 8, 10]


def block(conv, max_pool):
    """Two convolutions around a pool: the second on a map of 2x2."""

    def loss(x, kernel):
        x = nnx.relu(conv(x, kernel, stride=1, padding=1))
        x = max_pool(x, window=2, stride=2, padding=((0, 0), (0, 0)))
        return jnp.sum(conv(x, kernel, stride=1, padding=1) ** 2)

    return loss


fast, plain = (
    block(convolution.conv, pooling.max_pool),
    block(plain_conv, plain_max_pool),
)


X, KERNEL = normal(0, 2, 4, 4, 4), normal(1, 3, 3, 4, 4)


def jvp(loss, x, kernel):
    return jax.jvp(loss, (x, kernel), (x, kernel))


def jvp_of_the_kernel_alone(loss, x, kernel):
    return jax.jvp(lambda kernel: loss(x, kernel), (kernel,), (kernel,))


def linearize(loss, x, kernel):
    value, change = jax.linearize(loss, x, kernel)
    return value, change(x, kernel)


def jacfwd(loss, x, kernel):
    return jax.jacfwd(lambda kernel: loss(x, kernel))(kernel)


def hessian(loss, x, kernel):
    return jax.hessian(lambda scale: loss(x, scale * kernel))(jnp.ones((4, 1)))


def gradient(loss):
    return jax.grad(loss, argnums=(0, 1))


def forward_over_reverse(loss, x, kernel):
    return jax.jvp(gradient(loss), (x, kernel), (x, kernel))


def reverse_over_forward(loss, x, kernel):
    return gradient(lambda *args: jax.jvp(loss, args, (x, kernel))[1])(x, kernel)


def reverse_over_reverse(loss, x, kernel):
    def length(x, kernel):
        return sum(jnp.sum(d**2) for d in gradient(loss)(x, kernel))

    return jax.grad(length, argnums=(0, 1))(x, kernel)


def gradients_of_each_image(loss, x, kernel):
    each = jax.vmap(lambda x, kernel: gradient(loss)(x[None], kernel), (0, None))
    return each(x, kernel)


def gradient_of_a_sum_over_images(loss, x, kernel):
    def total(x, kernel):
        return jax.vmap(lambda x: loss(x[None], kernel))(x).sum()

    return gradient(total)(x, kernel)


def gradient_that_computes_again(loss, x, kernel):
    return gradient(jax.checkpoint(loss))(x, kernel)


DERIVATIVES = (
    jvp,
    jvp_of_the_kernel_alone,
    linearize,
    jacfwd,
    hessian,
    forward_over_reverse,
    reverse_over_forward,
    reverse_over_reverse,
    gradients_of_each_image,
    gradient_of_a_sum_over_images,
    gradient_that_computes_again,
)


@functools.cache
def every_derivative():
    """Of `fast` and of `plain`, by name, from one program."""

    @jax.jit
    def run(x, kernel):
        return {
            d.__name__: [d(f, x, kernel) for f in (fast, plain)] for d in DERIVATIVES
        }

    return run(X, KERNEL)


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_of_every_mode_and_order_equal_lax(derivative):
    found, expected = every_derivative()[derivative.__name__]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        assert scale > 1
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)


def test_a_constant_image_has_no_gradient_to_compute():
    text = str(jax.make_jaxpr(jax.grad(fast, argnums=1))(X, KERNEL))
    # Of two kernels and of the second convolution's input; of one pool.
    assert text.count("trilinear_derivative[") == 4


@pytest.mark.parametrize("cache", [2**20, 3100])  # at once; two images at a time
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_gradient_of_a_sharded_batch(monkeypatch, axis_type, cache):
    monkeypatch.setattr(convolution, "_CACHE", cache)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x, kernel = normal(0, 16, 4, 4, 4), normal(1, 3, 3, 4, 4)
    expected = jax.jit(jax.grad(plain, argnums=1))(x, kernel)
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
        found = jax.jit(jax.grad(fast, argnums=1))(rows, whole)
    chex.assert_trees_all_close(np.asarray(found), np.asarray(expected), rtol=1e-4)


def test_gradient_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = normal(0, 16, 4, 4, 4), normal(1, 3, 3, 4, 4)

    def whole(x, kernel):
        return jax.grad(lambda k: lax.psum(fast(x, k), "data"))(kernel)

    specs = (PartitionSpec("data"), PartitionSpec())
    sharded = jax.shard_map(whole, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    expected = jax.jit(jax.grad(plain, argnums=1))(x, kernel)
    chex.assert_trees_all_close(jax.jit(sharded)(x, kernel), expected, rtol=1e-4)


def value_and_gradient(loss, x, kernel):
    return jax.value_and_grad(loss, argnums=1)(x, kernel)


def lowered(derivative, loss, platform):
    traced = jax.jit(functools.partial(derivative, loss)).trace(X, KERNEL)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def operations(text, *ignored):
    """The arithmetic of a program, without the choice of a platform."""
    ignored = {"case", "return", "constant", *ignored}
    names = re.findall(r"stablehlo\.(\w+)", text)
    return sorted(name for name in names if name not in ignored)


def convolutions(text):
    """Every convolution of a program, with its attributes and types."""
    return sorted(
        line.split("dim_numbers")[1]
        for line in text.splitlines()
        if "stablehlo.convolution" in line
    )


@pytest.mark.parametrize(
    ("derivative", "count", "repeated"),
    [
        (value_and_gradient, 5, ()),
        # A kernel is turned around for each of its gradients; XLA does it once.
        (forward_over_reverse, 18, ("reverse",)),
    ],
)
def test_tpu_runs_the_plain_program(derivative, count, repeated):
    found, expected = (lowered(derivative, loss, "tpu") for loss in (fast, plain))
    assert operations(found, *repeated) == operations(expected, *repeated)
    assert convolutions(found) == convolutions(expected)
    assert len(convolutions(found)) == count


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_sixteen_bits_are_summed_in_float32_and_have_derivatives_of_sixteen(platform):
    def loss(x, kernel):
        options = {"preferred_element_type": jnp.float32}
        y = convolution.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS, **options
        )
        assert y.dtype == jnp.float32
        return jnp.sum(y**2)

    x, kernel = (a.astype(jnp.bfloat16) for a in (X, KERNEL))
    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    if platform == "cpu":  # x once; each convolution apart from its input
        assert text.count("stablehlo.optimization_barrier") == 3
        return
    assert "optimization_barrier" not in text
    types = [line.rpartition(" : ")[2] for line in convolutions(text)]
    from_bf16 = [t for t in types if t.partition("->")[0].count("bf16") == 2]
    assert len(from_bf16) == len(types) == 3
    assert sorted(t.partition("->")[2].count("bf16") for t in types) == [0, 1, 1]


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_gpus_run_the_plain_convolutions_and_pools_that_compare(platform):
    found, expected = (
        lowered(value_and_gradient, loss, platform) for loss in (fast, plain)
    )
    assert convolutions(found) == convolutions(expected)
    assert "select_and_scatter" in expected and "select_and_scatter" not in found
    assert "xi8>" in found  # the numbers of the chosen pixels


@pytest.mark.usefixtures("forms")
def test_a_window_of_the_whole_map_gives_the_sums_of_sixteen_bits():
    x, kernel = normal(0, 3, 7, 5, 64), normal(1, 7, 5, 64, 6)
    x, kernel = (a.astype(jnp.bfloat16) for a in (x, kernel))
    options = {"dimension_numbers": DIMENSIONS, "preferred_element_type": jnp.float32}
    found, expected = (
        jax.jit(functools.partial(conv, **options), static_argnums=(2, 3))(
            x, kernel, (1, 1), "VALID"
        )
        for conv in (convolution.conv_general_dilated, lax.conv_general_dilated)
    )
    assert found.dtype == jnp.float32
    # Rounded to bfloat16 they would be wrong by 0.2.
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("platform", "products"), [("cuda", 3), ("rocm", 3), ("tpu", 0), ("cpu", 3)]
)
def test_a_window_of_the_whole_map_is_a_product_but_on_tpu(platform, products):
    def loss(x, kernel):
        return jnp.sum(convolution.conv(x, kernel, stride=1, padding=0) ** 2)

    x, kernel = normal(0, 3, 7, 5, 4), normal(1, 7, 5, 4, 6)
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert operations(text).count("dot_general") == products
    assert len(convolutions(text)) == 3 - products


def test_cpu_runs_the_other_forms():
    found = operations(lowered(value_and_gradient, fast, "cpu"))
    assert "select_and_scatter" not in found
    assert found.count("convolution") == 1  # the first layer's forward
    # Computed once: each convolution's input, the pool's choice, and its gradient.
    assert found.count("optimization_barrier") == 4


def test_nnx_conv_calls_it():
    x = normal(0, 2, 2, 2, 3)
    options = {"kernel_size": (3, 3), "padding": 1, "rngs": nnx.Rngs(0)}
    conv = nnx.Conv(
        3, 4, conv_general_dilated=convolution.conv_general_dilated, **options
    )
    conv.bias[...] = normal(1, 4)
    kernel = conv.kernel[...]
    text = jax.jit(lambda x: conv(x)).lower(x).as_text()
    assert "stablehlo.convolution" not in text
    expected = plain_conv(x, kernel, stride=1, padding=1) + conv.bias[...]
    chex.assert_trees_all_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "window_strides": (2, 1)},
        {"padding": [(1, 0), (2, 1)]},
        {"padding": "SAME", "rhs_dilation": (2, 2)},
        {"padding": "SAME", "feature_group_count": 2, "features": 2},
        {"padding": "SAME", "precision": "highest"},
        {"padding": "SAME", "preferred_element_type": jnp.float32},
    ],
)
def test_whatever_lax_takes(options):
    features = options.pop("features", 4)
    x, kernel = normal(0, 2, 6, 7, 4), normal(1, 3, 3, features, 4)
    options = {"window_strides": (1, 1), "dimension_numbers": DIMENSIONS} | options
    found = value_and_gradients(convolution.conv_general_dilated, x, kernel, **options)
    expected = value_and_gradients(lax.conv_general_dilated, x, kernel, **options)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)

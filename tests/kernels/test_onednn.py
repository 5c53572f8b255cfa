"""Convolutions by oneDNN, where jaxlib has it: on Python 3.12 and newer."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax import create_model
from vgg_jax.compilation import onednn_options
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.inference.forward import Network
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization


@pytest.mark.parametrize("devices", [1, 2])
def test_the_gradients_are_those_of_the_plain_program(devices: int) -> None:
    model = create_model(
        "vgg11", width=0.25, num_classes=10, head="global_pool", rngs=nnx.Rngs(0)
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    mesh = make_mesh(jax.devices()[:devices])
    images = shard_batch(mesh, {"image": np.float32(rng.normal(size=(8, 32, 32, 3)))})

    def loss(params: nnx.State, images: dict[str, jax.Array]) -> jax.Array:
        model: ConvNet = nnx.merge(graphdef, params, rest)
        model.eval()
        return jnp.mean(jnp.square(model(images["image"])))

    step = jax.value_and_grad(loss)
    options = onednn_options()
    plain = jax.jit(step)(params, images)
    compiled = jax.jit(step, compiler_options=options).lower(params, images).compile()
    is_used = "__onednn$convolution" in compiled.as_text()
    assert is_used == bool(options)
    for ours, theirs in zip(
        jax.tree.leaves(compiled(params, images)), jax.tree.leaves(plain), strict=True
    ):
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.gelu])
def test_what_comes_before_an_activation_is_safe_behind_a_barrier(
    activation: Callable[[jax.Array], jax.Array],
) -> None:
    """Without it jaxlib 0.12 takes what comes behind: `onednn_options` says so."""
    rng = np.random.default_rng(0)
    images = np.float32(rng.normal(size=(8, 32, 32, 32)))
    kernel = np.float32(rng.normal(size=(3, 3, 32, 64)) / 17)

    def sums(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        before = jax.lax.optimization_barrier(before + 1)
        return jnp.sum(jnp.square(activation(before) + before)), before

    step = jax.value_and_grad(sums, has_aux=True)
    options = onednn_options()
    compiled = jax.jit(step, compiler_options=options).lower(kernel).compile()
    assert ("__onednn$convolution" in compiled.as_text()) == bool(options)
    chex.assert_trees_all_close(
        compiled(kernel), jax.jit(step)(kernel), rtol=1e-4, atol=1e-2
    )


def test_a_network_with_other_modules_is_evaluated_without() -> None:
    model = create_model(
        "vgg11", width=0.25, num_classes=10, head="global_pool", rngs=nnx.Rngs(0)
    )
    zero = Normalization((0.0,) * 3, (1.0,) * 3)
    options = Network.from_model(model, zero).with_onednn().options
    assert dict(options) == onednn_options()
    model.relu1_1 = Swish()
    assert not Network.from_model(model, zero).with_onednn().options


class Swish(nnx.Module):
    """An activation in the place of a ReLU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


@pytest.mark.parametrize(
    ("dtype", "version", "machine", "has_options"),
    [
        ("float32", "0.12.0.1", "x86_64", True),
        ("float32", "0.12.3", "AMD64", True),
        ("float32", "0.10.2", "x86_64", False),  # does not know them
        ("float32", "0.13.0", "x86_64", False),  # nobody has tried
        ("float32", "0.12.0", "aarch64", False),
        ("bfloat16", "0.12.0", "x86_64", False),  # would be slower
    ],
)
def test_only_what_has_onednn_is_told_to_use_it(
    dtype: str, version: str, machine: str, has_options: bool
) -> None:
    assert bool(onednn_options(dtype, version, machine)) == has_options

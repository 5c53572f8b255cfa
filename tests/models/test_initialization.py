"""Section 3.1: fresh weights under every scheme."""

from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from vgg_jax import create_model
from vgg_jax.models.network import INITS


def deviations(fan_in: int, fan_out: int) -> dict[str, float]:
    return {
        "paper": 0.1,
        "caffe_001": 0.01,
        "glorot": (2 / (fan_in + fan_out)) ** 0.5,
        "he": (2 / fan_in) ** 0.5,
    }


def initial(name: str, **options: Any) -> Any:
    """jit of a seed -> fresh weights, from "rbg" numbers: XLA compiles them faster."""

    @jax.jit
    def create(key: jax.Array) -> Any:
        model = create_model(name, rngs=nnx.Rngs(key), **options)
        return nnx.to_pure_dict(nnx.state(model))

    return lambda seed: jax.device_get(create(jax.random.key(seed, impl="rbg")))


@pytest.mark.parametrize(
    ("name", "init"),
    [
        ("vgg11_bn", None),
        ("vgg11", "he"),
        ("nin_cifar", None),
        ("nin_cifar", "paper"),
        ("nin_cifar", "caffe_001"),
    ],
)
def test_every_kernel_has_the_deviation_of_its_scheme(
    name: str, init: str | None
) -> None:
    chosen = {} if init is None else {"init": init}
    init = init or "glorot"
    create = initial(name, width=1 / 8, num_classes=50, **chosen)
    params, again, other = create(0), create(0), create(1)
    chex.assert_trees_all_equal(params, again)
    seen = []
    for module, leaves in params.items():
        if module.startswith("bn"):  # the identity
            assert (leaves["scale"] == 1).all() and (leaves["var"] == 1).all()
            assert not leaves["bias"].any() and not leaves["mean"].any()
            continue
        kernel = leaves["kernel"]
        side, _, inputs, outputs = kernel.shape
        fan_in, fan_out = side * side * inputs, side * side * outputs
        if module.startswith("fc"):  # a matrix: each output is one unit
            fan_out = outputs
        want = deviations(fan_in, fan_out)[init]
        # Five deviations of the estimate; a uniform or truncated law has less.
        tolerance = 5 / np.sqrt(2 * kernel.size)
        assert abs(kernel.std() / want - 1) < tolerance, module
        assert abs(kernel.mean()) < 5 * want / np.sqrt(kernel.size), module
        largest = np.abs(kernel).max() / want
        if init == "glorot":  # uniform
            assert 1.6 < largest < 1.733, module
        elif init == "he":  # truncated at two deviations of the uncut normal
            assert 2 < largest < 2.28, module
        else:
            assert largest > 2.5, module
        assert not leaves["bias"].any()
        assert (kernel != other[module]["kernel"]).mean() > 0.99, module
        seen.append(tuple(kernel.ravel()[:9] / want))
    assert len(set(seen)) == len(seen)


def test_layers_take_the_keys_of_the_stream_in_turn() -> None:
    rngs, same = nnx.Rngs(3), nnx.Rngs(3)
    model = create_model("vgg11_bn", num_classes=2, width=0.02, init="he", rngs=rngs)
    keys = [same.params() for _ in jax.tree.leaves(nnx.state(model, nnx.Param))]
    for name, place in (("conv1_1", 0), ("conv2_1", 4)):  # a bias, two of batch norm
        conv = getattr(model, name)
        kernel = INITS["he"](keys[place], conv.kernel_shape)
        np.testing.assert_array_equal(conv.kernel[...], kernel)
    following = rngs.params(), same.params()  # what comes after the model goes on there
    np.testing.assert_array_equal(*map(jax.random.key_data, following))

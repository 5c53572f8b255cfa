"""Network in Network, arXiv:1312.4400: parameters to the unit, values, pools."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import (
    answers,
    assert_relus_clip,
    assert_same,
    dropout_rates,
    images,
    network,
    shapes,
)
from vgg_jax import NiN, create_model
from vgg_jax.models.nin import IMAGENET, Block

REFERENCES = {
    "nin_imagenet": reference.nin_imagenet,
    "nin_cifar": reference.nin_cifar,
    "nin_tutorial": reference.nin_tutorial,
}

# Kernels, HWIO, of the networks as their authors used them.
CLASSES = {"nin_imagenet": 1000, "nin_cifar": 10, "nin_tutorial": 10}
CHANNELS = {"nin_imagenet": 3, "nin_cifar": 3, "nin_tutorial": 1}
PARAMETERS = {
    "nin_imagenet": 7_595_176,
    "nin_cifar": 966_986,
    "nin_tutorial": 1_992_166,
}
KERNELS: dict[str, dict[str, tuple[int, ...]]] = {
    "nin_imagenet": {
        "conv1": (11, 11, 3, 96),
        "cccp1": (1, 1, 96, 96),
        "cccp2": (1, 1, 96, 96),
        "conv2": (5, 5, 96, 256),
        "cccp3": (1, 1, 256, 256),
        "cccp4": (1, 1, 256, 256),
        "conv3": (3, 3, 256, 384),
        "cccp5": (1, 1, 384, 384),
        "cccp6": (1, 1, 384, 384),
        "conv4": (3, 3, 384, 1024),
        "cccp7": (1, 1, 1024, 1024),
        "cccp8": (1, 1, 1024, 1000),
    },
    "nin_cifar": {
        "conv1": (5, 5, 3, 192),
        "cccp1": (1, 1, 192, 160),
        "cccp2": (1, 1, 160, 96),
        "conv2": (5, 5, 96, 192),
        "cccp3": (1, 1, 192, 192),
        "cccp4": (1, 1, 192, 192),
        "conv3": (3, 3, 192, 192),
        "cccp5": (1, 1, 192, 192),
        "cccp6": (1, 1, 192, 10),
    },
    "nin_tutorial": {
        "conv1": (11, 11, 1, 96),
        "cccp1": (1, 1, 96, 96),
        "cccp2": (1, 1, 96, 96),
        "conv2": (5, 5, 96, 256),
        "cccp3": (1, 1, 256, 256),
        "cccp4": (1, 1, 256, 256),
        "conv3": (3, 3, 256, 384),
        "cccp5": (1, 1, 384, 384),
        "cccp6": (1, 1, 384, 384),
        "conv4": (3, 3, 384, 10),
        "cccp7": (1, 1, 10, 10),
        "cccp8": (1, 1, 10, 10),
    },
}


def abstract(name: str, **options: Any) -> Any:
    options = {"num_classes": CLASSES[name], "in_channels": CHANNELS[name]} | options
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


def sides(name: str, size: int, **options: Any) -> dict[str, int]:
    """The side of every intermediate of an image, without computing it."""
    graphdef, state = nnx.split(abstract(name, **options))
    x = jax.ShapeDtypeStruct((1, size, size, CHANNELS[name]), jnp.float32)

    def features(state: Any, x: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, state)
        return model.features(x, [layer.name for layer in model.layers])

    return {n: v.shape[1] for n, v in jax.eval_shape(features, state, x).items()}


@pytest.mark.parametrize("name", KERNELS)
def test_parameters_and_dropout(name: str) -> None:
    model = abstract(name)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert shapes(model) == {
        module: {"kernel": kernel, "bias": kernel[-1:]}
        for module, kernel in KERNELS[name].items()
    }
    places = ("drop1", "drop2") if name == "nin_cifar" else ("drop3",)
    assert dropout_rates(model) == dict.fromkeys(places, 0.5)


@pytest.mark.parametrize("name", KERNELS)
def test_width_leaves_the_scores_alone(name: str) -> None:
    found = shapes(abstract(name, num_classes=7, width=1 / 96, in_channels=3))
    for module, full in KERNELS[name].items():
        *_, inputs, outputs = found[module]["kernel"]
        if full[-1] == CLASSES[name]:
            assert outputs == 7
        else:
            assert outputs == round(full[-1] / 96)
        if module == "conv1":
            assert inputs == 3


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("other_end", [False, True])
def test_every_value_equals_the_reference(name: str, other_end: bool) -> None:
    """As its authors made it; and at other phases of the pools, with the other end."""
    size, final_relu = (32 if name == "nin_cifar" else 224), name == "nin_tutorial"
    options = {}
    if other_end:
        size, final_relu = size * 9 // 8, not final_relu
        options["final_relu"] = final_relu
    channels = CHANNELS[name]
    graphdef, params = network(
        name, width=1 / 8, num_classes=7, in_channels=channels, seed=2, **options
    )
    x = images(2, size, size + 5, channels)
    want = REFERENCES[name](params, x.astype(np.float64), **options)
    assert_relus_clip(want)
    got = answers(graphdef, params, x)
    assert_same(got, want)
    assert (got["score_map"].min() >= 0) == final_relu
    np.testing.assert_allclose(
        got["logits"], got["score_map"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-5
    )


def test_pools_round_as_their_authors_software_did() -> None:
    found = sides("nin_imagenet", 224)
    names = ("conv1", "pool1", "pool2", "pool3", "cccp8")
    assert [found[n] for n in names] == [54, 27, 13, 6, 6]
    found = sides("nin_cifar", 28)
    assert [found[n] for n in ("conv1", "pool1", "pool2", "cccp6")] == [28, 14, 7, 7]
    found = sides("nin_cifar", 32)
    assert [found[n] for n in ("conv1", "pool1", "pool2", "cccp6")] == [32, 16, 8, 8]
    found = sides("nin_tutorial", 224)
    names = ("conv1", "pool1", "pool2", "pool3", "relu_cccp8")
    assert [found[n] for n in names] == [54, 26, 12, 5, 5]


@pytest.mark.parametrize(
    ("name", "last"),
    [("nin_imagenet", "pool3"), ("nin_cifar", "pool2"), ("nin_tutorial", "pool3")],
)
def test_a_backbone_ends_in_its_last_pool(name: str, last: str) -> None:
    graphdef, params = network(name, width=1 / 16, num_classes=None)
    size = 32 if name == "nin_cifar" else 128
    x = images(1, size, size, 3)
    got = answers(graphdef, params, x)
    np.testing.assert_array_equal(got["logits"], got[last])
    assert not [n for n in got if n.startswith("drop")]
    # The whole network's weights, fresh for the last block, give the same map.
    _, whole = network(name, width=1 / 16, num_classes=5)
    want = REFERENCES[name](whole | params, x.astype(np.float64))[last]
    np.testing.assert_allclose(got[last], want, rtol=0, atol=1e-5 * want.max())


def test_only_the_last_block_may_be_as_wide_as_the_classes() -> None:
    blocks = (Block(3, 1, 1, (8, 8, None)), *IMAGENET)
    with pytest.raises(ValueError, match="only the last block"):
        NiN(blocks, num_classes=None, rngs=nnx.Rngs(0))

"""The same networks inside a Linen project, through `nnx.bridge.to_linen`."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import images, network
from vgg_jax import VGG, ConvNet, create_model
from vgg_jax.models.linen import to_linen
from vgg_jax.models.vgg import STAGES

OPTIONS = {"width": 1 / 16, "num_classes": 7, "fc_kernel": 1}


def linen(name: str = "vgg11") -> Any:
    return nnx.bridge.to_linen(create_model, name, keep_rngs=True, **OPTIONS)


def x() -> jax.Array:
    return jnp.asarray(images(2, 32, 32, 3))


def test_init_makes_the_tree_of_names() -> None:
    _, params = network("vgg11", **OPTIONS)
    want = jax.tree.map(np.shape, {"params": params})
    direct = nnx.bridge.to_linen(VGG, STAGES["A"], keep_rngs=True, **OPTIONS)
    variables = jax.eval_shape(direct.init, jax.random.key(0), x())
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == want
    # "rbg" numbers because XLA compiles them faster.
    variables = jax.jit(linen().init)(jax.random.key(0, impl="rbg"), x())
    assert jax.tree.map(np.shape, variables) == want
    kernel = variables["params"]["fc7"]["kernel"]
    assert abs(kernel.std() / (2 / sum(kernel.shape[2:])) ** 0.5 - 1) < 0.05


def test_transplanted_weights_give_the_same_logits() -> None:
    graphdef, params = network("vgg11", **OPTIONS)
    want = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, x())
    got = jax.jit(linen().apply)({"params": params}, x())
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_score_map_and_features() -> None:
    graphdef, params = network("vgg11", **OPTIONS)
    model, module = nnx.merge(graphdef, params), linen()
    pixels = jnp.asarray(images(1, 64, 96, 3))

    @jax.jit
    def both(params: Any) -> Any:
        variables = {"params": params}
        features = module.apply(variables, pixels, ("pool2",), nnx_method="features")
        return (
            module.apply(variables, pixels, nnx_method=ConvNet.score_map),
            model.score_map(pixels),
            features["pool2"],
            model.features(pixels, ("pool2",))["pool2"],
        )

    linen_map, nnx_map, linen_feature, nnx_feature = both(params)
    assert linen_map.shape == (1, 2, 3, 7)
    np.testing.assert_allclose(linen_map, nnx_map, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(linen_feature, nnx_feature, rtol=1e-5, atol=1e-5)


def test_apply_takes_the_names_of_methods() -> None:
    _, params = network("nin_cifar", width=1 / 16, num_classes=7)
    module = to_linen("nin_cifar", width=1 / 16, num_classes=7)
    pixels, variables = x(), {"params": params}

    @jax.jit
    def by_name(variables: Any) -> Any:
        found = (
            module.apply(variables, pixels, method="score_map"),
            module.apply(variables, pixels, ("pool1",), method="features"),
        )
        expected = (
            module.apply(variables, pixels, nnx_method="score_map"),
            module.apply(variables, pixels, ("pool1",), nnx_method="features"),
        )
        return found, expected

    found, expected = by_name(variables)
    assert found[0].shape == (2, 8, 8, 7)
    assert found[1]["pool1"].shape == (2, 16, 16, 6)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_a_linen_network_trains_and_has_a_name() -> None:
    class Project(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, train: bool) -> jax.Array:
            return to_linen("vgg11_bn", name="vgg", **OPTIONS)(images, train=train)

    module = Project()
    shapes = jax.eval_shape(
        lambda: module.init({"params": jax.random.key(0)}, x(), train=False)
    )
    assert set(shapes) == {"params", "batch_stats"}
    assert set(shapes["params"]) == {"vgg"}

    def train(variables: Any, key: jax.Array) -> Any:
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        return module.apply(variables, x(), train=True, rngs=rngs, mutable=mutable)

    logits, updated = jax.eval_shape(train, shapes, jax.random.key(1))
    assert logits.shape == (2, 7)
    assert set(updated) == {"batch_stats"}


def test_gradients_are_the_same() -> None:
    options = {"width": 1 / 16, "num_classes": 7}
    graphdef, params = network("nin_cifar", **options)
    module = nnx.bridge.to_linen(create_model, "nin_cifar", **options)

    def here(params: Any) -> jax.Array:
        return jnp.square(nnx.merge(graphdef, params)(x())).mean()

    def there(params: Any) -> jax.Array:
        return jnp.square(module.apply({"params": params}, x())).mean()

    ours, theirs = jax.jit(lambda p: (jax.grad(here)(p), jax.grad(there)(p)))(params)
    for name, leaves in ours.items():
        for leaf, gradient in leaves.items():
            largest = np.abs(gradient).max()
            assert largest > 0
            np.testing.assert_allclose(
                theirs[name][leaf], gradient, rtol=0, atol=1e-5 * largest
            )


def test_dropout_follows_the_key_of_apply() -> None:
    _, params = network("vgg11", **OPTIONS)
    module = linen()

    @jax.jit
    def train(params: Any, key: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x(), train=True, rngs={"dropout": key})

    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(train(params, one), train(params, one))
    assert (train(params, one) != train(params, two)).all()
    evaluated = jax.jit(module.apply)({"params": params}, x())
    assert (train(params, one) != evaluated).all()
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(lambda p: module.apply({"params": p}, x(), train=True), params)


def test_batch_statistics_are_a_collection_of_their_own() -> None:
    _, params = network("vgg11_bn", **OPTIONS)
    module = linen("vgg11_bn")
    shapes = jax.eval_shape(module.init, jax.random.key(0), x())
    assert set(shapes) == {"params", "batch_stats"}
    variables = {
        collection: {m: {n: params[m][n] for n in leaves} for m, leaves in tree.items()}
        for collection, tree in shapes.items()
    }
    assert set(variables["batch_stats"]["bn1_1"]) == {"mean", "var"}

    @jax.jit
    def train(variables: Any, key: jax.Array) -> Any:
        rngs, collections = {"dropout": key}, ["batch_stats"]
        return module.apply(variables, x(), train=True, rngs=rngs, mutable=collections)

    _, updated = train(variables, jax.random.key(0))
    before, after = (v["batch_stats"]["bn1_1"]["mean"] for v in (variables, updated))
    assert np.abs(np.asarray(after) - before).max() > 1e-3


def test_a_backbone_inside_a_linen_module() -> None:
    class Project(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array) -> jax.Array:
            backbone = nnx.bridge.to_linen(
                create_model, "vgg11", num_classes=None, width=1 / 16, name="vgg"
            )
            return nn.Dense(3)(backbone(images).mean(axis=(1, 2)))

    shapes = jax.eval_shape(Project().init, jax.random.key(0), x())["params"]
    assert set(shapes) == {"vgg", "Dense_0"}
    assert shapes["vgg"]["conv5_2"]["kernel"].shape == (3, 3, 32, 32)
    assert shapes["Dense_0"]["kernel"].shape == (32, 3)

"""Maps by name: pools, ReLUs, ranges, devices, transformations, and files."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.losses import test_dists, test_lpips
from tests.losses.networks import (
    MODEL,
    NORMALIZATION,
    Pool,
    average_pool,
    l2_pool,
    maps_of,
    max_pool,
    photographs,
)
from tests.models.drawn import network
from vgg_jax import losses
from vgg_jax.distributed import make_mesh
from vgg_jax.losses import FeatureExtractor
from vgg_jax.models import ConvNet, create_model

RANGE = (-1, 1)
X = photographs(2, 33, 38)
POOLS: dict[str, Pool] = {"max": max_pool, "average": average_pool, "l2": l2_pool}


def make(*names: str, **options: Any) -> FeatureExtractor:
    return FeatureExtractor.from_model(MODEL, names, NORMALIZATION, **options)


def normalized(x: np.ndarray) -> np.ndarray:
    grays = (x.astype(np.float64) + 1) / 2 * 255
    return (grays - NORMALIZATION.mean) / NORMALIZATION.std


@pytest.mark.parametrize("pools", POOLS)
def test_maps_before_and_after_relu_with_any_pools(pools: str) -> None:
    names = ("conv2_1", "relu2_1", "pool1", "conv1_1")
    got = make(*names, pools=pools)(X, input_range=RANGE)
    want = maps_of(normalized(X), POOLS[pools])
    assert sorted(got) == sorted(names)
    for name in names:
        scale = np.abs(want[name]).max()
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * scale)
    assert (got["conv2_1"] < 0).any() and (got["relu2_1"] >= 0).all()


def test_nothing_is_kept_of_deeper_layers() -> None:
    assert list(make("relu2_1", "conv1_2").params) == ["conv1_1", "conv1_2", "conv2_1"]


def test_networks_with_batch_normalization_have_their_running_statistics() -> None:
    graphdef, params = network("vgg11_bn", num_classes=None, width=1 / 16)
    model: ConvNet = nnx.merge(graphdef, params)
    extractor = FeatureExtractor.from_model(model, ("relu2_1",), NORMALIZATION)
    assert extractor.batch_stats["bn2_1"].keys() == {"mean", "var"}
    got = extractor(X, input_range=RANGE)["relu2_1"]
    want = model.features(jnp.asarray(normalized(X), jnp.float32), ("relu2_1",))
    np.testing.assert_allclose(got, want["relu2_1"], rtol=1e-4, atol=1e-5)


def test_a_mapped_axis_a_mesh_and_shard_map_change_no_value() -> None:
    """Of value and gradient, with a target whose maps are on all devices."""
    extractor = make("relu1_2", "relu2_1", pools="average")
    x = photographs(8, 17, 20)
    target = extractor(photographs(1, 17, 20, seed=1), input_range=RANGE)
    weights = {"relu1_2": 1.0, "relu2_1": 2.0}

    def loss(extractor: FeatureExtractor, x: jax.Array, target: Any) -> jax.Array:
        maps = extractor(x, input_range=RANGE)
        x_grams, target_grams = (
            losses.gram_matrices(m, normalization="elements") for m in (maps, target)
        )
        return losses.feature_loss(maps, target, weights) + losses.style_loss(
            x_grams, target_grams, weights
        )

    def value_and_gradient(extractor: FeatureExtractor, x: Any, target: Any) -> Any:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses_of_images = loss(extractor, x, target)
            return losses_of_images.sum(), losses_of_images

        gradient, value = jax.grad(total, has_aux=True)(x)
        return value, gradient

    want = jax.jit(value_and_gradient)(extractor, x, target)
    each = jax.vmap(value_and_gradient, in_axes=(None, 0, None))
    mapped = jax.jit(each)(extractor, x[:, None], target)
    mesh = jax.make_mesh((8,), ("data",))
    rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    on_devices = jax.device_put((extractor, x, target), (whole, rows, whole))
    sharded = jax.jit(value_and_gradient)(*on_devices)
    assert len(sharded[1].sharding.device_set) == 8
    by_hand = jax.jit(
        jax.shard_map(
            value_and_gradient,
            mesh=mesh,
            in_specs=(P(), P("data"), P()),
            out_specs=P("data"),
        )
    )(*on_devices)
    for got in (jax.tree.map(lambda a: a[:, 0], mapped), sharded, by_hand):
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_lpips_and_dists_run_under_shard_map() -> None:
    mesh = make_mesh()
    x, y = photographs(8, 17, 20), photographs(8, 17, 20, seed=1)
    for distance in (test_lpips.LPIPS, test_dists.DISTS):

        def gradient(distance: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return jax.grad(lambda x: distance(x, y, input_range=RANGE).sum())(x)

        on_mesh = jax.shard_map(
            gradient,
            mesh=mesh,
            in_specs=(P(), P("data"), P("data")),
            out_specs=P("data"),
        )
        got = jax.jit(on_mesh)(distance, x, y)
        want = jax.jit(gradient)(distance, x, y)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    ("values", "input_range"),
    [
        ((-1.0, 1.0), (0, 1)),
        ((0.0, 255.0), (-1, 1)),
        ((0.0, 255.0), (0, 1)),
        ((-200.0, 255.0), (0, 255)),
    ],
)
def test_images_that_contradict_their_range_are_refused_outside_of_jit(
    values: tuple[float, float], input_range: tuple[float, float]
) -> None:
    extractor = make("conv1_1")
    low, high = values
    x = low + (X + 1) / 2 * (high - low)
    with pytest.raises(ValueError, match="expected images with values from"):
        extractor(x, input_range=input_range)
    with pytest.raises(ValueError, match="expected images with values from"):
        extractor(jnp.asarray(x), input_range=input_range)
    jax.jit(functools.partial(extractor, input_range=input_range))(x)


@pytest.mark.parametrize(
    ("values", "input_range", "meant"),
    [
        ((0.0, 1.0), (-1, 1), "(0, 1)"),
        ((-1.0, 1.0), (0, 255), "(-1, 1)"),
        ((0.0, 1.0), (0, 255), "(0, 1)"),
    ],
)
def test_images_of_a_narrower_usual_range_are_a_warning_at_the_call(
    values: tuple[float, float], input_range: tuple[float, float], meant: str
) -> None:
    low, high = values
    x = low + (X + 1) / 2 * (high - low)
    with pytest.warns(UserWarning, match="is it input_range=") as caught:
        make("conv1_1")(x, input_range=input_range)
    assert meant in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("make_array", [np.asarray, jnp.asarray])
def test_values_that_are_not_numbers_are_refused(make_array: Any) -> None:
    images = np.zeros((1, 33, 38, 3), np.float32)
    images[0, 5, 7, 1] = np.nan
    with pytest.raises(ValueError, match="and some that are not finite"):
        make("relu1_1")(make_array(images), input_range=RANGE)


def test_images_may_overshoot_and_may_be_flat() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("conv1_1")(1.4 * X, input_range=RANGE)
        for value in (0.0, 1.0):
            make("conv1_1")(np.full_like(X, value), input_range=RANGE)
        make("conv1_1")(X[:0], input_range=RANGE)


def test_a_network_with_layers_of_ones_own_is_refused() -> None:
    model = create_model("vgg11", width=1 / 16, rngs=nnx.Rngs(0))
    model.fc8 = nnx.Linear(3, 2, rngs=nnx.Rngs(0))  # behind what is extracted
    FeatureExtractor.from_model(model, ("relu2_1",), NORMALIZATION)
    model.relu2_1 = jax.nn.gelu
    FeatureExtractor.from_model(model, ("conv2_1",), NORMALIZATION)
    with pytest.raises(ValueError, match="own layers for a feature extractor"):
        FeatureExtractor.from_model(model, ("relu2_1",), NORMALIZATION)


def test_what_is_no_image_or_range_or_layer_is_refused() -> None:
    extractor = make("conv1_1")
    infinite = float("inf")
    ordered: tuple[Any, ...] = ((1, -1), (0, 0), (0, float("nan")))
    for bad in (*ordered, (0, infinite), (-infinite, 0), 1, None, (0, 1, 2), "0,1"):
        with pytest.raises(ValueError, match="the values of black and of white"):
            extractor(X, input_range=bad)
    one_is_no_number = np.where(np.arange(X.size).reshape(X.shape) == 0, np.nan, X)
    with pytest.raises(ValueError, match="got nan to nan"):
        extractor(one_is_no_number, input_range=RANGE)
    with pytest.raises(ValueError, match=r"expected images \[N, H, W, 3\], got"):
        extractor(X[0], input_range=RANGE)
    with pytest.raises(ValueError, match="did you mean 'relu1_1'"):
        make("relu_1_1")
    with pytest.raises(ValueError, match="expected names"):
        make()
    with pytest.raises(ValueError, match="did you mean 'average'"):
        make("conv1_1", pools="averages")
    with pytest.raises(TypeError, match="input_range"):
        extractor(X)  # type: ignore[call-arg]

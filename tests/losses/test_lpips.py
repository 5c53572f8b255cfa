"""LPIPS of a tiny network against its formula; its gradient, its map, its refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.networks import CHANNELS, MODEL, TAPS, maps_of, photographs
from vgg_jax.losses import FeatureExtractor, Lpips
from vgg_jax.losses.lpips import NORMALIZATION, unit_vectors

RANGE = (-1, 1)
HEADS = {
    name: np.random.default_rng(i).uniform(0, 1, channels).astype(np.float32)
    for i, (name, channels) in enumerate(CHANNELS.items())
}
# The authors' constants, of values from -1 to 1.
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])


def make(**options: Any) -> Lpips:
    trunk = FeatureExtractor.from_model(MODEL, TAPS, NORMALIZATION, **options)
    return Lpips(trunk=trunk, heads={k: jnp.asarray(v) for k, v in HEADS.items()})


LPIPS = make()
X, Y = photographs(2, 33, 38), photographs(2, 33, 38, seed=1)


def reference_maps(x: np.ndarray) -> dict[str, np.ndarray]:
    return maps_of((x.astype(np.float64) - SHIFT) / SCALE)


def layer_differences(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Section 3 of arXiv:1801.03924, with the epsilon of the authors' code."""
    x_maps, y_maps = reference_maps(x), reference_maps(y)
    differences = []
    for name in TAPS:
        unit_x, unit_y = (
            m[name] / (np.sqrt((m[name] ** 2).sum(-1, keepdims=True)) + 1e-10)
            for m in (x_maps, y_maps)
        )
        differences.append((HEADS[name] * (unit_x - unit_y) ** 2).sum(axis=-1))
    return differences


def test_distances_equal_the_formula() -> None:
    want = sum(layer.mean(axis=(1, 2)) for layer in layer_differences(X, Y))
    got = LPIPS(X, Y, input_range=RANGE)
    assert got.shape == (2,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.array_equal(LPIPS(X, X, input_range=RANGE), [0, 0])


def test_one_target_serves_many_images() -> None:
    target = LPIPS.features(Y[:1], input_range=RANGE)
    got = LPIPS.distance(LPIPS.features(X, input_range=RANGE), target)
    want = LPIPS(X, np.concatenate([Y[:1], Y[:1]]), input_range=RANGE)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_every_range_of_the_same_images_gives_the_same_distances() -> None:
    want = LPIPS(X, Y, input_range=RANGE)
    for low, high in ((0, 1), (0, 255), (-0.5, 0.5)):
        x, y = (low + (images + 1) / 2 * (high - low) for images in (X, Y))
        got = LPIPS(x, y, input_range=(low, high))
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_bytes_are_images_too() -> None:
    x, y = (np.round((images + 1) / 2 * 255).astype(np.uint8) for images in (X, Y))
    as_floats = [images.astype(np.float32) for images in (x, y)]
    np.testing.assert_allclose(
        LPIPS(x, y, input_range=(0, 255)),
        LPIPS(*as_floats, input_range=(0, 255)),
        rtol=1e-6,
    )


def bilinear(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges maps; cells have their values at their centers, borders go on."""
    for axis, side in enumerate(size, 1):
        count = layer.shape[axis]
        places = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
        first = np.floor(places).astype(int)
        shape = [1, 1, 1]
        shape[axis] = side
        share = (places - first).reshape(shape)
        after = np.minimum(first + 1, count - 1)
        layer = (1 - share) * layer.take(first, axis) + share * layer.take(after, axis)
    return layer


def test_the_map_over_space_is_the_sum_of_enlarged_layers() -> None:
    features = [LPIPS.features(images, input_range=RANGE) for images in (X, Y)]
    got = LPIPS.distance_map(*features, X.shape[1:3])
    want = sum(bilinear(layer, (33, 38)) for layer in layer_differences(X, Y))
    assert got.shape == (2, 33, 38)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_maps_have_a_gradient(dtype: str) -> None:
    """Where the original's is not a number: all of a map, and one cell of a map."""
    maps = {
        name: jnp.ones((1, 3, 2, channels), dtype).at[:, 0].set(0)
        for name, channels in CHANNELS.items()
    }
    black = jax.tree.map(jnp.zeros_like, maps)
    for x, y in ((maps, black), (black, maps), (black, black), (maps, maps)):
        gradients = jax.grad(lambda x, y: LPIPS.distance(x, y).sum(), (0, 1))(x, y)
        for gradient in jax.tree.leaves(gradients):
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float32)).all()
            assert (gradient[:, 0] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-18, 1e-10, 1.0, 1e15])
def test_vectors_of_any_length_have_finite_unit_vectors(scale: float) -> None:
    x = scale * jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2)
    unit, pull = jax.vjp(unit_vectors, x)
    want = x.astype(float) / (5 * scale + 1e-10)
    np.testing.assert_allclose(unit, want, rtol=1e-5, atol=1e-8)
    assert np.isfinite(pull(jnp.ones_like(unit))[0]).all()


def test_the_gradient_is_that_of_the_formula() -> None:
    """Along a random direction, against differences in double precision."""
    gradient = jax.grad(lambda x: LPIPS(x, Y, input_range=RANGE).sum())(X)
    direction = np.random.default_rng(2).normal(size=X.shape)
    step = 1e-6

    def total(x: np.ndarray) -> float:
        return sum(layer.mean(axis=(1, 2)).sum() for layer in layer_differences(x, Y))

    x = X.astype(np.float64)
    slope = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3)


def test_rematerialization_changes_no_value() -> None:
    remat = make(remat=True)

    def value_and_gradient(lpips: Lpips) -> Any:
        return jax.value_and_grad(lambda x: lpips(x, Y, input_range=RANGE).sum())(X)

    for got, want in zip(
        value_and_gradient(remat), value_and_gradient(LPIPS), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
    program = jax.make_jaxpr(lambda x: remat.features(x, input_range=RANGE))(X)
    assert str(program).count(" remat2[") == 3  # the stages


def test_a_trunk_in_bfloat16_has_distances_in_float32() -> None:
    half = make(dtype="bfloat16")
    assert {m.dtype for m in half.features(X, input_range=RANGE).values()} == {
        jnp.dtype("bfloat16")
    }
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    got = half(X, Y, input_range=RANGE)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, LPIPS(X, Y, input_range=RANGE), rtol=0.05)
    gradient = jax.grad(lambda x: half(x, Y, input_range=RANGE).sum())(X)
    assert gradient.dtype == X.dtype and np.isfinite(gradient).all()


def test_weights_are_arguments_that_can_be_trained() -> None:
    def loss(lpips: Lpips) -> jax.Array:
        return lpips(X, Y, input_range=RANGE).sum()

    gradients = jax.jit(jax.grad(loss))(LPIPS)
    assert isinstance(gradients, Lpips)
    assert jax.tree.structure(gradients) == jax.tree.structure(LPIPS)
    for name, layer in zip(TAPS, layer_differences(X, Y), strict=True):
        total = (gradients.heads[name] * HEADS[name]).sum()  # linear in the head
        np.testing.assert_allclose(total, layer.mean(axis=(1, 2)).sum(), rtol=1e-4)
    assert np.abs(gradients.trunk.params["conv1_1"]["kernel"]).max() > 0
    donated = jax.tree.map(jnp.copy, LPIPS)
    halve = jax.jit(
        lambda lpips: jax.tree.map(lambda a: a / 2, lpips), donate_argnums=0
    )
    halved = halve(donated)
    assert donated.heads["relu1_2"].is_deleted()
    np.testing.assert_array_equal(halved.heads["relu1_2"], HEADS["relu1_2"] / 2)


def test_other_weights_do_not_compile_anew() -> None:
    traces = []

    @jax.jit
    def distance(lpips: Lpips, x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return lpips(x, Y, input_range=RANGE)

    doubled = dataclasses.replace(
        LPIPS, heads={name: 2 * head for name, head in LPIPS.heads.items()}
    )
    np.testing.assert_allclose(distance(doubled, X), 2 * distance(LPIPS, X), rtol=1e-6)
    assert len(traces) == 1


def test_images_of_different_sizes_are_refused() -> None:
    features = LPIPS.features(X, input_range=RANGE)
    other = LPIPS.features(X[:, :, :32], input_range=RANGE)
    with pytest.raises(ValueError, match="expected maps of images of the same size"):
        LPIPS.distance(features, other)
    with pytest.raises(ValueError, match="expected a map of 'relu3_1'"):
        LPIPS.distance({n: m for n, m in features.items() if n != "relu3_1"}, features)
    with pytest.raises(ValueError, match="at least 4x4 pixels, got 3x40"):
        LPIPS.features(photographs(1, 3, 40), input_range=RANGE)

"""DISTS of a tiny network against its formula; its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.networks import CHANNELS, MODEL, TAPS, l2_pool, maps_of, photographs
from vgg_jax.losses import Dists, FeatureExtractor
from vgg_jax.weights.lineage import TORCHVISION

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RNG = np.random.default_rng(0)
ALPHA, BETA = (
    {
        name: RNG.uniform(0, 1, channels).astype(np.float32)
        for name, channels in {"image": 3, **CHANNELS}.items()
    }
    for _ in range(2)
)


def make(**options: Any) -> Dists:
    trunk = FeatureExtractor.from_model(MODEL, TAPS, TORCHVISION, pools="l2", **options)
    return Dists(
        trunk=trunk,
        alpha={name: jnp.asarray(w) for name, w in ALPHA.items()},
        beta={name: jnp.asarray(w) for name, w in BETA.items()},
    )


DISTS = make()
X = photographs(2, 33, 38)
Y = np.clip(X + 0.5 * photographs(2, 33, 38, seed=1), -1, 1)
RANGE = (-1, 1)


def reference_maps(x: np.ndarray) -> dict[str, np.ndarray]:
    image = (x.astype(np.float64) + 1) / 2
    return {"image": image, **maps_of((image - MEAN) / STD, l2_pool)}


def reference_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equations (4) to (6) of arXiv:2004.07728."""
    x_maps, y_maps = reference_maps(x), reference_maps(y)
    total = sum(w.sum() for w in (*ALPHA.values(), *BETA.values()))
    similarity = np.zeros(len(x))
    for name in ALPHA:
        for i in range(len(x)):
            for c in range(x_maps[name].shape[-1]):
                a, b = (maps[name][i, :, :, c].ravel() for maps in (x_maps, y_maps))
                (va, cov), (_, vb) = np.cov(a, b, bias=True)
                ma, mb = a.mean(), b.mean()
                texture = (2 * ma * mb + 1e-6) / (ma**2 + mb**2 + 1e-6)
                structure = (2 * cov + 1e-6) / (va + vb + 1e-6)
                similarity[i] += ALPHA[name][c] * texture + BETA[name][c] * structure
    return 1 - similarity / total


def test_distances_equal_the_formula() -> None:
    got = DISTS(X, Y, input_range=RANGE)
    assert got.shape == (2,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference_distance(X, Y), atol=2e-6)
    assert got.min() > 0.01
    np.testing.assert_allclose(DISTS(X, X, input_range=RANGE), [0, 0], atol=1e-6)


def test_maps_equal_those_of_a_network_with_l2_pools() -> None:
    want = reference_maps(X)
    got = DISTS.features(X, input_range=RANGE)
    assert set(got) == {"image", *TAPS}
    for name in ALPHA:
        scale = np.abs(want[name]).max()
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("brightness", [-1.0, 0.3])
def test_images_without_any_signal_have_a_gradient(
    dtype: str, brightness: float
) -> None:
    dists = make(dtype=dtype)
    x = jnp.full(X.shape, brightness)
    for y in (x, Y):
        value, gradient = jax.value_and_grad(
            lambda x, y=y: dists(x, y, input_range=RANGE).sum()
        )(x)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_formula() -> None:
    gradient = jax.grad(lambda x: DISTS(x, Y, input_range=RANGE).sum())(X)
    direction = np.random.default_rng(2).normal(size=X.shape)
    x, step = X.astype(np.float64), 1e-5
    after, before = (
        reference_distance(x + sign * step * direction, Y).sum() for sign in (1, -1)
    )
    slope = (after - before) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3)


def test_a_trunk_in_bfloat16_has_distances_in_float32() -> None:
    got = make(dtype="bfloat16")(X, Y, input_range=RANGE)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, DISTS(X, Y, input_range=RANGE), rtol=0.05)

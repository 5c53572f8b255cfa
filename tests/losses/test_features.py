"""Feature loss, Gram matrices, style and total variation against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax import losses

RNG = np.random.default_rng(0)
SHAPES = {"relu1_1": (2, 5, 7, 3), "conv2_2": (2, 2, 3, 6)}
X, Y = (
    {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for _ in range(2)
)
WEIGHTS = {"relu1_1": 0.5, "conv2_2": 2.0}


def test_the_feature_loss_by_its_formula() -> None:
    def want(power: int) -> np.ndarray:
        return sum(
            w * (np.abs(X[name] - Y[name]) ** power).reshape(2, -1).mean(axis=1)
            for name, w in WEIGHTS.items()
        )

    np.testing.assert_allclose(losses.feature_loss(X, Y, WEIGHTS), want(2), rtol=1e-5)
    absolute = losses.feature_loss(X, Y, WEIGHTS, error="absolute")
    np.testing.assert_allclose(absolute, want(1), rtol=1e-5)


def test_layers_without_a_weight_do_not_count() -> None:
    alone = losses.feature_loss(X, Y, {"conv2_2": 1.0})
    want = np.square(X["conv2_2"] - Y["conv2_2"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(alone, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("normalization", "count"), [("positions", 5 * 7), ("elements", 3 * 5 * 7)]
)
def test_gram_matrices_by_their_formula(normalization: str, count: int) -> None:
    flat = X["relu1_1"].reshape(2, 5 * 7, 3)
    want = np.stack([f.T @ f / count for f in flat])
    got = losses.gram_matrix(jnp.asarray(X["relu1_1"]), normalization=normalization)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_gram_matrices_of_half_precision_are_summed_in_float32() -> None:
    """257 ones: bfloat16 would stay at 256."""
    ones = jnp.ones((1, 1, 257, 2), "bfloat16")
    got = losses.gram_matrix(ones, normalization="positions")
    assert got.dtype == jnp.float32 and (got == 1).all()


def test_the_style_loss_is_a_quarter_of_what_gatys_had() -> None:
    """E of arXiv:1508.06576, equation (4), with sums for Gram matrices."""
    grams = [losses.gram_matrices(m, normalization="positions") for m in (X, Y)]
    got = losses.style_loss(*grams, WEIGHTS) / 4
    want = np.zeros(2)
    for name, weight in WEIGHTS.items():
        for i in range(2):
            f, p = (m[name][i].reshape(-1, SHAPES[name][-1]) for m in (X, Y))
            positions, channels = f.shape
            total = ((f.T @ f - p.T @ p) ** 2).sum()
            want[i] += weight * total / (4 * channels**2 * positions**2)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_one_style_of_another_size_serves_many_images() -> None:
    style = {n: RNG.normal(size=(1, 4, 9, s[-1])) for n, s in SHAPES.items()}
    target = losses.gram_matrices(style, normalization="elements")
    got = losses.style_loss(
        losses.gram_matrices(X, normalization="elements"), target, WEIGHTS
    )
    assert got.shape == (2,) and (got > 0).all()


def test_total_variation_by_hand() -> None:
    image = jnp.array([[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]).reshape(1, 2, 3, 1)
    assert losses.total_variation(image) == (5 + 4 + 2) + (1 + 2)
    squared = losses.total_variation(image, error="squared")
    assert squared == (25 + 16 + 4) + (1 + 4)
    bytes_ = losses.total_variation(image.astype("uint8"))
    assert bytes_.dtype == jnp.float32 and bytes_ == 14


@pytest.mark.parametrize("error", losses.ERRORS)
def test_gradients_are_zero_for_equal_images(error: str) -> None:
    def total(x: dict[str, jax.Array]) -> jax.Array:
        return losses.feature_loss(x, X, WEIGHTS, error=error).sum()

    def variation(x: jax.Array) -> jax.Array:
        return losses.total_variation(x, error=error).sum()

    for gradient in jax.tree.leaves(jax.grad(total)(jax.tree.map(jnp.asarray, X))):
        assert (gradient == 0).all()
    assert (jax.grad(variation)(jnp.ones((1, 3, 3, 1))) == 0).all()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'squared'"):
        losses.feature_loss(X, Y, WEIGHTS, error="square")
    with pytest.raises(ValueError, match="did you mean 'positions'"):
        losses.gram_matrix(X["relu1_1"], normalization="position")
    with pytest.raises(ValueError, match="expected a map of 'relu9_9', got"):
        losses.feature_loss(X, Y, {"relu9_9": 1.0})
    with pytest.raises(ValueError, match="expected maps of images of the same size"):
        losses.feature_loss(X, {n: m[:, :-1] for n, m in Y.items()}, WEIGHTS)

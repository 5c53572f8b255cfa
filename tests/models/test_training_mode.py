"""What `train=True` changes: dropout and batch statistics; and the gradients."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import assert_same, images, network
from vgg_jax.models.layers import Dropout
from vgg_jax.models.network import ConvNet

SMALL = {"width": 1 / 8, "num_classes": 7, "fc_kernel": 1}


def train_mode(graphdef: Any, params: Any, x: np.ndarray, name: str) -> Any:
    """jit of a key -> (`model(x, train=True)`, an intermediate when evaluating)."""

    @jax.jit
    def forward(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model, images = nnx.merge(graphdef, params), jnp.asarray(x)
        logits = model(images, train=True, rngs=nnx.Rngs(dropout=key))
        return logits, model.features(images, [name])[name]

    return lambda seed: map(np.asarray, forward(jax.random.key(seed)))


def matrix(inputs: int, outputs: int, side: int = 1) -> np.ndarray:
    """A kernel that passes each channel on, from the center of its window."""
    kernel = np.zeros((side, side, inputs, outputs), np.float32)
    kernel[side // 2, side // 2] = np.eye(inputs, outputs)
    return kernel


def pass_on(params: Any, *modules: str, bias: float = 0.0) -> None:
    for module in modules:
        side, _, inputs, outputs = params[module]["kernel"].shape
        params[module]["kernel"] = matrix(inputs, outputs, side)
        params[module]["bias"] = np.full(outputs, bias, np.float32)


def test_dropout_after_relu6_and_relu7_with_masks_of_their_own() -> None:
    options = {"width": 1 / 8, "fc_features": 2048, "num_classes": 256, "fc_kernel": 1}
    graphdef, params = network("vgg11", dropout=0.2, **options)
    pass_on(params, "fc7", bias=2.0)
    pass_on(params, "fc8", bias=5.0)
    x = images(8, 32, 32, 3)
    got, relu6 = train_mode(graphdef, params, x, "relu6")(0)
    relu6 = relu6[:, 0, 0]
    cases = np.stack(
        [
            np.full_like(relu6, 5.0),  # drop7 took it
            np.full_like(relu6, 5.0 + 2.0 / 0.8),  # drop6 took it
            5.0 + (relu6 / 0.8 + 2.0) / 0.8,
        ]
    )
    distances = np.abs(got - cases)[:, relu6 > 0.1]
    assert distances.min(axis=0).max() < 1e-4
    case = distances.argmin(axis=0)
    assert abs((case == 0).mean() - 0.2) < 0.05
    assert abs((case[case != 0] == 1).mean() - 0.2) < 0.05
    # relu7 clips nothing here, so the expectation is what evaluation gives.
    difference = got - (7.0 + relu6)
    assert abs(difference.mean()) < 4 * difference.std() / difference.size**0.5


def test_dropout_before_the_last_layer_of_the_global_pool_head() -> None:
    options = {"width": 1 / 8, "num_classes": 64, "head": "global_pool"}
    graphdef, params = network("vgg11", dropout=0.2, **options)
    pass_on(params, "fc8", bias=5.0)
    x = images(16, 32, 32, 3)
    got, pool5 = train_mode(graphdef, params, x, "pool5")(0)
    pool5 = pool5[:, 0, 0]
    cases = np.stack([np.full_like(pool5, 5.0), 5.0 + pool5 / 0.8])
    distances = np.abs(got - cases)[:, pool5 > 0.1]
    assert distances.min(axis=0).max() < 1e-4
    assert abs((distances.argmin(axis=0) == 0).mean() - 0.2) < 0.05


@pytest.mark.parametrize(("name", "size"), [("nin_imagenet", 39), ("nin_tutorial", 67)])
def test_dropout_after_the_last_pool_of_nin(name: str, size: int) -> None:
    graphdef, params = network(name, width=1 / 4, num_classes=96, dropout=0.2)
    pass_on(params, "conv4", "cccp7", "cccp8", bias=1.0)
    x = images(8, size, size, 3)
    got, pool3 = train_mode(graphdef, params, x, "pool3")(0)
    pool3 = pool3[:, 0, 0]
    cases = np.stack([np.full_like(pool3, 3.0), 3.0 + pool3 / 0.8])
    distances = np.abs(got - cases)[:, pool3 > 0.1]
    assert distances.min(axis=0).max() < 1e-4
    assert abs((distances.argmin(axis=0) == 0).mean() - 0.2) < 0.06


def test_dropout_after_both_pools_of_nin_cifar() -> None:
    graphdef, params = network("nin_cifar", width=1 / 4, num_classes=24, dropout=0.2)
    pass_on(params, "conv2", "cccp3", "cccp4", "conv3", "cccp5", "cccp6")
    x = images(16, 4, 4, 3)  # pool1 is 2x2, pool2 its mean
    got, pool1 = train_mode(graphdef, params, x, "pool1")(0)
    pool1 = pool1.reshape(16, 4, 24)
    masks = itertools.product((0, 1), repeat=4)
    cases = np.stack(
        [
            np.einsum("p,npc->nc", mask, pool1) / 4 / 0.8**2
            for mask in map(np.array, masks)
        ]
    )
    alive = pool1.min(axis=1) > 0.01
    assert alive.sum() > 100
    distances = np.abs(got - cases)[:, alive]
    assert distances.min(axis=0).max() < 1e-4
    # drop2 takes the whole mean, drop1 single pixels of it.
    assert abs((got[alive] == 0).mean() - 0.2) < 0.08
    pixels = np.array(list(itertools.product((0, 1), repeat=4))).sum(axis=1)
    kept = pixels[distances.argmin(axis=0)][got[alive] != 0]
    assert abs(kept.mean() / 4 - 0.8) < 0.05


def test_train_needs_a_dropout_stream_and_evaluation_none() -> None:
    graphdef, params = network("vgg11", **SMALL)
    model = nnx.merge(graphdef, params)
    x = jnp.asarray(images(1, 32, 32, 3))
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(lambda x: model(x, train=True), x)
    train = train_mode(graphdef, params, x, "fc8")
    first, plain = train(1)
    np.testing.assert_array_equal(first, next(train(1)))
    assert (first != next(train(2))).all()
    without, _ = network("vgg11", dropout=0.0, **SMALL)
    kept = jax.jit(lambda p, x: nnx.merge(without, p)(x, train=True))(params, x)
    np.testing.assert_allclose(kept, plain[:, 0, 0], rtol=1e-5, atol=1e-5)


def test_running_statistics_move_a_tenth_towards_the_batch() -> None:
    graphdef, params = network("vgg11_bn", dropout=0.0, **SMALL)
    x = images(8, 64, 64, 3)

    def step(params: Any, x: jax.Array, train: bool) -> Any:
        model = nnx.merge(graphdef, params)
        logits = model(x, train=train)
        return logits, nnx.to_pure_dict(nnx.state(model))

    step = jax.jit(step, static_argnums=2)
    logits, after = step(params, x, True)
    want = reference.vgg(
        "A",
        params,
        x.astype(np.float64),
        fc_kernel=1,
        batch_norm=True,
        batch_statistics=True,
    )
    assert_same({"logits": logits}, {"logits": want["logits"]}, tolerance=1e-4)
    for module in params:
        if not module.startswith("bn"):
            chex.assert_trees_all_equal(after[module], params[module])
            continue
        conv = want[module.replace("bn", "conv")]
        # Over n - 1, as torchvision; the batch itself was normalized over n.
        moved = {"mean": conv.mean((0, 1, 2)), "var": conv.var((0, 1, 2), ddof=1)}
        for name, value in moved.items():
            expected = 0.9 * params[module][name] + 0.1 * value
            np.testing.assert_allclose(
                after[module][name], expected, rtol=1e-4, atol=1e-4, err_msg=module
            )
    _, unchanged = step(params, x, False)
    chex.assert_trees_all_equal(unchanged, params)


def vgg11_everything(params: Any, x: np.ndarray) -> Any:
    """vgg11 with both normalizations, in training mode."""
    options = {"batch_norm": True, "batch_statistics": True, "lrn": "krizhevsky"}
    return reference.vgg("A", params, x, fc_kernel=1, **options)


@pytest.mark.parametrize(
    ("name", "forward", "shape", "options"),
    [
        (
            "vgg11_lrn",
            vgg11_everything,
            (4, 32, 32, 1),
            {"batch_norm": True, "fc_kernel": 1, "dropout": 0.0},
        ),
        ("nin_imagenet", reference.nin_imagenet, (2, 67, 67, 3), {}),
        ("nin_cifar", reference.nin_cifar, (2, 15, 16, 3), {}),
    ],
)
def test_gradients_equal_finite_differences_of_the_reference(
    name: str, forward: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    graphdef, params = network(
        name, width=1 / 16, num_classes=7, in_channels=shape[-1], **options
    )
    rng = np.random.default_rng(0)
    x, weights = images(*shape), rng.normal(size=(shape[0], 7))
    train = name.startswith("vgg")

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> jax.Array:
        logits = nnx.merge(graphdef, params)(jnp.asarray(x), train=train)
        return (logits * weights).sum()

    exact = jax.tree.map(np.float64, params)

    def slope(module: str, leaf: str, direction: np.ndarray) -> float:
        ends = []
        for step in (1e-7, -1e-7):
            moved = exact[module] | {leaf: exact[module][leaf] + step * direction}
            seen = forward(exact | {module: moved}, x.astype(np.float64))
            ends.append((seen["logits"] * weights).sum())
        return (ends[0] - ends[1]) / 2e-7

    for module, leaves in gradients(params).items():
        for leaf, gradient in leaves.items():
            place, length = f"{module}.{leaf}", np.linalg.norm(gradient)
            before_norm = module.startswith("conv") and leaf == "bias"
            if train and (before_norm or leaf in ("mean", "var")):
                assert length < 1e-3, place  # the batch's own mean takes it away
                continue
            assert np.isfinite(length) and length > 1e-2, place
            direction = rng.normal(size=gradient.shape)
            np.testing.assert_allclose(
                (np.asarray(gradient, np.float64) * direction).sum(),
                slope(module, leaf, direction),
                rtol=0,
                atol=1e-3 * length,
                err_msg=place,
            )


def test_every_image_and_every_layer_has_a_dropout_of_its_own() -> None:
    layers = (Dropout("drop1", 0.5), Dropout("drop2", 0.5))
    options: dict[str, Any] = {"in_channels": 1, "init": "he", "dtype": "float32"}
    model = ConvNet(layers, num_classes=None, rngs=nnx.Rngs(0), **options)
    keys = jax.random.split(jax.random.key(0), 2)
    kept = model(jnp.ones((2, 64, 64, 1)), train=True, rngs=keys) != 0
    # A quarter is kept by both layers; it would be a half if they drew the same.
    np.testing.assert_allclose(kept.mean((1, 2, 3)), 0.25, atol=0.05)
    assert abs((kept[0] & kept[1]).mean() - 0.25**2) < 0.05

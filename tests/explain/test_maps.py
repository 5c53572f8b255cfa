"""Grad-CAM, class activation maps and class score maps against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import images, network
from vgg_jax.explain import class_activation_map, class_score_map, grad_cam
from vgg_jax.models import ConvNet, create_model

STEP = 1e-6  # of finite differences
LABELS = np.array([1, 3])
VGG = {"width": 1 / 16, "num_classes": 7, "head": "global_pool"}
NIN = {"width": 1 / 16, "num_classes": 7}


def in_float64(params: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array, np.float64), params)


def scores_after(layer: str, params: Any, maps: np.ndarray) -> np.ndarray:
    """The class scores that a VGG-11 makes of the map of a layer: [N, classes]."""
    run = reference.Run(params, maps)
    steps = {
        "relu3_2": lambda: run.max_pool("pool3", 2, 2, ceil=False),
        "pool3": lambda: run.conv("conv4_1", 3, padding=1),
        "conv4_1": lambda: run.relu("relu4_1"),
        "relu4_1": lambda: run.conv("conv4_2", 3, padding=1),
        "conv4_2": lambda: run.relu("relu4_2"),
        "relu4_2": lambda: run.max_pool("pool4", 2, 2, ceil=False),
        "pool4": lambda: run.conv("conv5_1", 3, padding=1),
        "conv5_1": lambda: run.relu("relu5_1"),
        "relu5_1": lambda: run.conv("conv5_2", 3, padding=1),
        "conv5_2": lambda: run.relu("relu5_2"),
        "relu5_2": lambda: run.max_pool("pool5", 2, 2, ceil=False),
        "pool5": lambda: run.conv("fc8", 1),
        "fc8": lambda: None,
    }
    for name in list(steps)[list(steps).index(layer) :]:
        steps[name]()
    return run.x.mean(axis=(1, 2))


def reference_grad_cam(
    layer: str, params: Any, maps: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Grad-CAM, the gradient by finite differences.

    The gradient's mean over space is the change of the score where a whole channel is
    raised, by the number of cells.
    """
    cells = maps.shape[1] * maps.shape[2]
    total = np.zeros(maps.shape[:3])
    for channel in range(maps.shape[3]):
        step = np.zeros_like(maps)
        step[..., channel] = STEP
        raised, lowered = (
            scores_after(layer, params, maps + sign * step)[range(len(maps)), labels]
            for sign in (1, -1)
        )
        weight = (raised - lowered) / (2 * STEP * cells)
        total += weight[:, None, None] * maps[..., channel]
    return np.maximum(total, 0)


def test_grad_cam_of_a_vgg_is_that_of_finite_differences_in_numpy() -> None:
    layers = ("relu3_2", "conv5_1", "pool5", "fc8")
    graphdef, params = network("vgg11", **VGG)
    pixels = images(2, 64, 96, 3)

    @jax.jit
    def run(params: Any, pixels: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        maps = {layer: grad_cam(model, pixels, LABELS, layer) for layer in layers}
        return maps, class_score_map(model, pixels, LABELS), model(pixels)

    with jax.default_matmul_precision("highest"):
        found, score_map, logits = run(params, jnp.asarray(pixels))
    exact = in_float64(params)
    seen = reference.vgg("A", exact, pixels.astype(np.float64), head="global_pool")
    clipped = []  # the share of cells whose sum is below zero, a layer each
    for layer in layers:
        expected = reference_grad_cam(layer, exact, seen[layer], LABELS)
        assert found[layer].shape == expected.shape == seen[layer].shape[:3]
        assert found[layer].dtype == jnp.float32
        clipped.append((expected == 0).mean())
        np.testing.assert_allclose(
            found[layer], expected, rtol=0, atol=1e-4 * expected.max(), err_msg=layer
        )
    assert 0.1 < max(clipped) < 0.9
    expected = np.stack(
        [seen["score_map"][i, ..., label] for i, label in enumerate(LABELS)]
    )
    np.testing.assert_allclose(score_map, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(
        score_map.mean(axis=(1, 2)), logits[np.arange(2), LABELS], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "side", "last", "run_reference"),
    [
        ("nin_cifar", 40, "cccp6", reference.nin_cifar),
        ("nin_tutorial", 160, "cccp8", reference.nin_tutorial),
    ],
)
def test_the_class_activation_map_of_nin(
    name: str, side: int, last: str, run_reference: Any
) -> None:
    """It is the map before the last layer by the class's weights, and Grad-CAM is it.

    Grad-CAM lacks what is below zero and a constant factor, the number of cells; where
    scores have a ReLU, its gradient is another one.
    """
    graphdef, params = network(name, **NIN)
    pixels = images(2, side, side + 16, 3)
    before = f"relu_cccp{int(last[-1]) - 1}"

    @jax.jit
    def run(params: Any, pixels: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        return (
            class_activation_map(model, pixels, LABELS),
            grad_cam(model, pixels, LABELS, before),
            class_score_map(model, pixels, LABELS),
        )

    with jax.default_matmul_precision("highest"):
        found, gradients, score_map = run(params, jnp.asarray(pixels))
    exact = in_float64(params)
    seen = run_reference(exact, pixels.astype(np.float64))
    weights, bias = exact[last]["kernel"][0, 0], exact[last]["bias"]
    expected = np.einsum("nijk,kn->nij", seen[before], weights[:, LABELS])
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    with_bias = found + bias[LABELS, None, None]
    if name == "nin_tutorial":
        assert (with_bias < 0).any()
        np.testing.assert_allclose(
            score_map, np.maximum(with_bias, 0), rtol=0, atol=tolerance
        )
    else:
        np.testing.assert_allclose(score_map, with_bias, rtol=0, atol=tolerance)
        cells = expected.shape[1] * expected.shape[2]
        np.testing.assert_allclose(
            cells * gradients, np.maximum(expected, 0), rtol=0, atol=3 * tolerance
        )
        assert (expected < 0).any() and (expected > 0).any()


def test_a_network_in_training_mode_is_explained_as_it_evaluates() -> None:
    graphdef, params = network("vgg11_bn", **VGG)
    pixels = jnp.asarray(images(1, 32, 32, 3))

    @jax.jit
    def run(params: Any) -> Any:
        maps = []
        for mode in (ConvNet.eval, ConvNet.train):
            model = nnx.merge(graphdef, params)
            mode(model)
            maps.append(
                (
                    grad_cam(model, pixels, 3, "relu4_2"),
                    class_activation_map(model, pixels, 3),
                    class_score_map(model, pixels, 3),
                )
            )
        return maps

    evaluating, training = run(params)
    assert evaluating[0].max() > 0
    for one, other in zip(evaluating, training, strict=True):
        np.testing.assert_array_equal(one, other)


def test_maps_are_of_float32_in_a_network_that_computes_in_bfloat16() -> None:
    def run(pixels: jax.Array) -> Any:
        model = create_model("nin_cifar", dtype="bfloat16", rngs=nnx.Rngs(0), **NIN)
        return (
            grad_cam(model, pixels, 1, "relu_conv2"),
            class_activation_map(model, pixels, 1),
            class_score_map(model, pixels, 1),
        )

    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((3, 32, 48, 3), jnp.float32))
    assert [found.shape for found in shapes] == [(3, 16, 24), (3, 8, 12), (3, 8, 12)]
    assert {found.dtype for found in shapes} == {jnp.dtype("float32")}


def test_mistakes_are_named() -> None:
    pixels = jnp.zeros((1, 32, 32, 3))

    def explain(explainer: Any, *arguments: Any, **options: Any) -> None:
        def run() -> jax.Array:
            model = create_model("vgg11", width=1 / 16, rngs=nnx.Rngs(0), **options)
            return explainer(model, pixels, 0, *arguments)

        jax.eval_shape(run)

    with pytest.raises(ValueError, match="'relu5_4': did you mean 'relu5_2' or"):
        explain(grad_cam, "relu5_4", head="global_pool")
    for explainer, arguments in (
        (grad_cam, ("relu5_1",)),
        (class_activation_map, ()),
        (class_score_map, ()),
    ):
        with pytest.raises(ValueError, match="backbone; create the model with"):
            explain(explainer, *arguments, num_classes=None)

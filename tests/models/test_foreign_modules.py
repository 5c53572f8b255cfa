"""Modules that somebody puts in the place of a network's own."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import images
from vgg_jax import create_model
from vgg_jax.export.program import Program
from vgg_jax.models.modules import BatchNorm, Conv
from vgg_jax.models.network import ConvNet
from vgg_jax.weights import load_weights, save_weights

X = jnp.asarray(images(4, 32, 32, 3))


def new_model() -> ConvNet:
    """A VGG-11 of 8 to 64 channels, whose normalizations are not the identity."""
    model = create_model(
        "vgg11_bn",
        width=1 / 8,
        num_classes=5,
        head="global_pool",
        dropout=0,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    for name in ("bn1_1", "bn2_1"):
        norm = getattr(model, name)
        norm.scale[...] = jnp.asarray(rng.normal(size=norm.num_features), jnp.float32)
        norm.bias[...] = jnp.asarray(rng.normal(size=norm.num_features), jnp.float32)
        norm.mean[...] = jnp.asarray(rng.normal(size=norm.num_features), jnp.float32)
    return model


def filled(module: nnx.Module, like: nnx.Module) -> Any:
    """A module with the parameters of another."""
    nnx.update(module, nnx.state(like, (nnx.Param, nnx.BatchStat)))
    return module


def same_conv(model: ConvNet, name: str) -> nnx.Conv:
    own = getattr(model, name)
    sizes = (own.in_features, own.out_features, own.kernel_size)
    options = {"padding": own.padding, "rngs": nnx.Rngs(1)}
    return filled(nnx.Conv(*sizes, **options), own)


def same_norm(model: ConvNet, name: str) -> nnx.BatchNorm:
    own = getattr(model, name)
    options = {"momentum": own.momentum, "epsilon": own.epsilon, "rngs": nnx.Rngs(1)}
    options["use_running_average"] = own.use_running_average
    return filled(nnx.BatchNorm(own.num_features, **options), own)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["conv1_1", "conv3_2", "bn1_1", "bn2_1", "bn3_2"])
@pytest.mark.parametrize("devices", [None, 1])
def test_a_module_of_flax_gives_what_the_own_one_gives(
    name: str, train: bool, devices: int | None
) -> None:
    own, other = new_model(), new_model()
    own.devices = other.devices = devices
    same = same_conv if name.startswith("conv") else same_norm
    setattr(other, name, same(other, name))

    def run(model: ConvNet) -> tuple[jax.Array, Any, Any]:
        def loss(model: ConvNet) -> tuple[jax.Array, jax.Array]:
            logits = model(X, train=train)
            return (logits**2).sum(), logits

        gradients, logits = nnx.grad(loss, has_aux=True)(model)
        return logits, gradients, nnx.state(model, nnx.BatchStat)

    (found, *changes), (expected, *expected_changes) = run(other), run(own)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected_changes[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3 * max(1, largest)),
        *(nnx.to_pure_dict(part[0]) for part in (changes, expected_changes)),
    )
    for norm in ("bn1_1", "bn2_1", "bn3_2"):
        means = [
            nnx.to_pure_dict(c[1])[norm]["mean"] for c in (changes, expected_changes)
        ]
        np.testing.assert_allclose(*means, rtol=1e-3, atol=1e-4)


def test_programs_for_tpu_run_it() -> None:
    model = new_model()
    model.devices = 1
    model.conv2_1 = same_conv(model, "conv2_1")
    graphdef, state = nnx.split(model)
    traced = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x)).trace(state, X)
    assert "convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()


class Zero(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 0 * x


@pytest.mark.parametrize("name", ["conv3_2", "bn2_1", "relu2_1", "pool2", "drop5"])
def test_any_row_runs_the_module_that_is_there(name: str) -> None:
    model = new_model()
    setattr(model, name, Zero())
    assert model.replaced == (name,)
    assert not model.features(X, (name,))[name].any()
    assert model(X, train=True, rngs=nnx.Rngs(0)).shape == (4, 5)


def test_a_module_of_the_own_kind_runs_in_the_place_of_any_row() -> None:
    model = new_model()
    model.bn2_1 = nnx.Dropout(0.5)
    model.relu2_1 = Conv(16, 16, (1, 1), padding=0, rngs=nnx.Rngs(0))
    assert model.replaced == ("bn2_1", "relu2_1")
    maps = model.features(X, ("conv2_1", "bn2_1", "relu2_1"), train=False)
    np.testing.assert_array_equal(maps["bn2_1"], maps["conv2_1"])
    assert bool((maps["relu2_1"] < 0).any())


@pytest.mark.parametrize("own", [Conv, BatchNorm])
def test_so_does_one_of_a_class_that_is_made_of_the_own_one(own: type) -> None:
    class Changed(own):  # type: ignore[misc]
        def __call__(self, x: jax.Array) -> jax.Array:
            return 0 * x

    model = new_model()
    name = "conv2_1" if own is Conv else "bn2_1"
    module = getattr(model, name)
    if own is Conv:
        sizes = (module.in_features, module.out_features, (3, 3))
        setattr(model, name, Changed(*sizes, padding=1, rngs=nnx.Rngs(0)))
    else:
        setattr(model, name, Changed(module.num_features, rngs=nnx.Rngs(0)))
    assert model.replaced == (name,)
    assert not model.features(X, (name,))[name].any()


@pytest.mark.parametrize("train", [False, True])
def test_train_reaches_what_a_module_holds(train: bool) -> None:
    own, other = new_model(), new_model()
    other.bn1_1 = nnx.Sequential(same_norm(other, "bn1_1"))
    found, expected = (model(X, train=train) for model in (other, own))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    moved = other.bn1_1.layers[0].mean
    np.testing.assert_allclose(moved[...], own.bn1_1.mean[...], rtol=1e-4, atol=1e-5)


def conv(*sizes: int, **options: Any) -> nnx.Conv:
    return nnx.Conv(*sizes, (3, 3), rngs=nnx.Rngs(0), **options)


def batch_norm(**options: Any) -> nnx.BatchNorm:
    return nnx.BatchNorm(16, use_running_average=True, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("name", "module", "is_replaced"),
    [
        ("conv2_1", conv(8, 16), False),
        ("conv2_1", conv(8, 16, padding=1, strides=1), False),
        ("conv2_1", conv(8, 16, padding=2, kernel_dilation=2), True),
        ("conv2_1", conv(8, 16, strides=2), True),
        ("conv2_1", conv(8, 16, use_bias=False), True),
        ("conv2_1", conv(8, 16, padding="VALID"), True),
        ("bn2_1", batch_norm(epsilon=1e-5), False),
        ("bn2_1", batch_norm(epsilon=0.5), True),
        ("bn2_1", batch_norm(use_scale=False), True),
        ("bn2_1", nnx.GroupNorm(16, num_groups=4, rngs=nnx.Rngs(0)), True),
        ("fc8", nnx.Conv(64, 9, (1, 1), rngs=nnx.Rngs(0)), True),
        ("fc8", nnx.Linear(64, 5, rngs=nnx.Rngs(0)), True),
    ],
)
def test_files_and_exports_are_of_what_the_rows_say(
    name: str, module: nnx.Module, is_replaced: bool, tmp_path: Path
) -> None:
    model = new_model()
    setattr(model, name, module)
    assert model.replaced == (name,) * is_replaced
    file = tmp_path / "weights.safetensors"
    if is_replaced:
        with pytest.raises(ValueError, match=f"in the place of {name}, which computes"):
            save_weights(model, file)
        with pytest.raises(ValueError, match="own layers for an export"):
            Program(model=model)
        return
    save_weights(model, file)
    loaded = new_model()
    load_weights(loaded, file)
    np.testing.assert_allclose(loaded(X), model(X), rtol=1e-4, atol=1e-4)


def test_another_number_of_classes() -> None:
    model = new_model()
    model.fc8 = nnx.Conv(64, 9, (1, 1), rngs=nnx.Rngs(0))
    assert model(X).shape == (4, 9)
    assert model.score_map(jnp.zeros((1, 64, 96, 3))).shape == (1, 2, 3, 9)


def test_a_module_of_ones_own_sees_the_map_of_its_row() -> None:
    class Twice(nnx.Module):
        def __init__(self, inner: nnx.Module):
            self.inner = inner

        def __call__(self, x: jax.Array) -> jax.Array:
            return 2 * self.inner(x)  # type: ignore[operator]

    own, other = new_model(), new_model()
    other.conv1_1 = Twice(other.conv1_1)
    names = ("conv1_1", "pool1")
    found, expected = (model.features(X, names) for model in (other, own))
    np.testing.assert_allclose(found["conv1_1"], 2 * expected["conv1_1"], rtol=1e-5)
    assert found["pool1"].shape == expected["pool1"].shape


@pytest.mark.parametrize(
    ("name", "module", "found"),
    [
        ("conv2_1", conv(8, 16, padding="VALID"), r"\(16, 16\), as Conv.*\(14, 14\)"),
        ("conv2_1", conv(8, 16, strides=2), r"\(16, 16\), as Conv.*\(8, 8\)"),
    ],
)
def test_a_map_of_another_size_is_refused(
    name: str, module: nnx.Module, found: str
) -> None:
    model = new_model()
    setattr(model, name, module)
    with pytest.raises(ValueError, match=f"expected a map .*{found}"):
        model(X)


def test_a_row_without_parameters_may_leave_the_map_as_large() -> None:
    model = new_model()
    model.pool5 = nnx.identity
    assert model.features(X, ("pool5",))["pool5"].shape[1:3] == (2, 2)
    sizes = jnp.full((len(X), 2), 20)
    with pytest.raises(ValueError, match=r"expected a map .*\(1, 1\), as MaxPool"):
        model.score_map(X, sizes=sizes)

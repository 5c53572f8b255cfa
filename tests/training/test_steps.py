"""The steps against a computation by hand, and on one device and eight."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vgg_jax import ConvNet
from vgg_jax.config import OptimizerConfig
from vgg_jax.distributed import make_mesh, replicated, shard_batch
from vgg_jax.models import layers as rows
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.objectives import CLASSIFICATION
from vgg_jax.training.optimizer import (
    OPTIMIZERS,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from vgg_jax.training.sharding import placement
from vgg_jax.training.steps import (
    Forward,
    TrainState,
    image_keys,
    init_state,
    jit_train_step,
    split,
    train_step,
)

MEAN, STD = (70.0,), (90.0,)
CONFIG = OptimizerConfig(learning_rate=0.02, momentum=0.9, weight_decay=1e-3)
KEY = jax.random.key(7)


def network(
    rngs: nnx.Rngs, *, batch_norm: bool = False, dropout: float = 0.0
) -> ConvNet:
    """A network that compiles in a moment, with a layer of each kind of VGG's."""
    layers: list[rows.Layer] = []
    for i in (1, 2):
        layers.append(rows.Conv(f"conv{i}", 12, kernel=3, padding=1))
        if batch_norm:
            layers.append(rows.BatchNorm(f"bn{i}"))
        layers += [
            rows.Relu(f"relu{i}"),
            rows.MaxPool(f"pool{i}", 4, 4, ceil_mode=False),
        ]
    layers += [
        rows.FullyConnected("fc7", 64, kernel=2),
        rows.Relu("relu7"),
        rows.Dropout("drop7", dropout),
        rows.FullyConnected("fc8", 10, kernel=1),
    ]
    return ConvNet(layers, num_classes=10, in_channels=1, init="he", rngs=rngs)


normalized = functools.partial(network, batch_norm=True)


def batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "weight": np.ones(size, np.float32),
    }


def start(
    create: Any = network, config: OptimizerConfig = CONFIG
) -> tuple[nnx.GraphDef, TrainState, Any]:
    optimizer = make_optimizer(config)
    state = init_state(
        create, optimizer, jax.random.key(0), trained_layers=config.trained_layers
    )
    return split(create(nnx.Rngs(0)))[0], state, optimizer


def forward(graphdef: Any, **options: Any) -> Forward:
    place = placement(make_mesh())
    settings = {
        "normalization": Normalization(MEAN, STD),
        "place": place,
        "devices": 1,
        "remat": False,
    }
    return Forward(graphdef=graphdef, **settings | options)


def jitted(graphdef: Any, optimizer: Any, **options: Any) -> Any:
    return jax.jit(
        functools.partial(
            train_step,
            forward=forward(graphdef, **options),
            optimizer=optimizer,
            accumulate_steps=1,
        )
    )


@functools.cache
def plain_step() -> tuple[nnx.GraphDef, TrainState, Any]:
    """The network's definition, its first state and its step, compiled once."""
    graphdef, state, optimizer = start()
    return graphdef, state, jitted(graphdef, optimizer)


def test_normalize_subtracts_the_mean_of_each_channel() -> None:
    images = np.array([[[[10, 20, 30]]]], np.uint8)
    got = Normalization((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))(jnp.asarray(images))
    np.testing.assert_allclose(got[0, 0, 0], [9, 9, 9])


def test_the_step_adds_each_images_own_shift_to_its_pixels() -> None:
    _, state, step = plain_step()
    data = batch(8)
    data["image"] = data["image"] // 2 + 64
    levels = np.array([0, 5, -60, 60, 0, 20, -20, 1])
    moved = data["image"] + levels.astype(np.uint8)[:, None, None, None]
    plain = step(state, data | {"image": moved}, KEY)
    shifted = step(state, data | {"shift": np.float32(levels[:, None])}, KEY)
    chex.assert_trees_all_close(plain, shifted, rtol=1e-5)
    unlike = step(state, data, KEY)[1]["loss"]
    assert abs(unlike - plain[1]["loss"]) > 1e-3


def test_one_step_equals_the_update_by_hand() -> None:
    graphdef, state, step = plain_step()
    data = batch(8)

    def loss(params: Any) -> jax.Array:
        images = (data["image"].astype(np.float32) - 70.0) / 90.0
        logits = nnx.merge(graphdef, params)(jnp.asarray(images))
        log_p = jax.nn.log_softmax(logits)
        return -log_p[jnp.arange(8), data["label"]].mean()

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(
        lambda w, g: w - 0.02 * (g + 1e-3 * w), state.params, gradients
    )
    after, sums = step(state, data, KEY)
    chex.assert_trees_all_close(after.params, expected, atol=1e-6)
    assert int(after.step) == 1
    np.testing.assert_allclose(sums["loss"] / 8, loss(state.params), rtol=1e-5)
    np.testing.assert_allclose(
        sums["gradient_norm"], optax.tree.norm(gradients), rtol=1e-4
    )


@pytest.mark.parametrize("create", [network, normalized])
def test_an_example_of_weight_zero_changes_nothing(create: Any) -> None:
    graphdef, state, optimizer = start(create)
    data = batch(8)
    data["weight"][5] = 0
    other = {name: value.copy() for name, value in data.items()}
    other["image"][5] = 255 - other["image"][5]
    other["label"][5] = (other["label"][5] + 1) % 10
    step = jitted(graphdef, optimizer)
    one, two = step(state, data, KEY), step(state, other, KEY)
    chex.assert_trees_all_close(one[0], two[0], rtol=1e-6)
    chex.assert_trees_all_close(one[1], two[1], rtol=1e-6)
    assert float(one[1]["weight"]) == 7
    seven = {name: np.delete(value, 5, axis=0) for name, value in data.items()}
    after, _ = step(state, seven, KEY)
    chex.assert_trees_all_close(one[0].batch_stats, after.batch_stats, rtol=1e-4)
    chex.assert_trees_all_close(one[0].params, after.params, atol=1e-5)


def test_devices_and_parts_leave_examples_of_weight_zero_out_of_statistics() -> None:
    # In two parts on two devices, the whole first part has weight 0.
    mesh = make_mesh(jax.devices()[:2])
    graphdef, state, optimizer = start(normalized)
    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    data = batch(8)
    data["weight"][::2] = 0
    four = {name: value[1::2] for name, value in data.items()}
    want, _ = jitted(graphdef, optimizer)(state, four, KEY)
    step = jit_train_step(forward(graphdef), optimizer, 2, shardings)
    got, sums = step(jax.device_put(state, shardings), shard_batch(mesh, data), KEY)
    assert float(sums["weight"]) == 4
    chex.assert_trees_all_close(
        jax.device_get((got.batch_stats, got.params)),
        (want.batch_stats, want.params),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_that_are_not_trained_stay(name: str) -> None:
    trained_layers = ("fc7", "fc8")
    config = OptimizerConfig(
        name=name, learning_rate=0.1, trained_layers=trained_layers
    )
    graphdef, state, optimizer = start(normalized, config)
    frozen = ("bn1", "bn2")  # else their statistics would differ
    step = jitted(graphdef, optimizer, trained_layers=trained_layers)
    data = batch(4)
    after, sums = step(state, data, KEY)
    most = tuple(name for name in state.params if name not in frozen)
    graphdef, state, optimizer = start(
        normalized, dataclasses.replace(config, trained_layers=most)
    )
    step = jitted(graphdef, optimizer, trained_layers=most)
    most_trained, sums_of_most = step(state, data, KEY)
    assert sums["gradient_norm"] < sums_of_most["gradient_norm"]
    for layer, before in state.params.items():
        expected = most_trained.params[layer] if layer in trained_layers else before
        chex.assert_trees_all_close(after.params[layer], expected, atol=1e-6)
        if layer in most:
            assert np.any(most_trained.params[layer]["kernel"] != before["kernel"])
    assert float(learning_rate(set_learning_rate(after.opt_state, 0.5))) == 0.5


def test_nothing_is_computed_or_kept_for_layers_that_are_not_trained() -> None:
    config = dataclasses.replace(CONFIG, trained_layers=("bn2", "fc8"))
    graphdef, state, optimizer = start(normalized, config)
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-2]
        for path, array in jax.tree.leaves_with_path(state.opt_state)
        if array.size > 1
    }
    assert kept == {"bn2", "fc8"}
    step = functools.partial(
        train_step,
        forward=forward(graphdef, trained_layers=config.trained_layers),
        optimizer=optimizer,
        accumulate_steps=1,
    )
    # An odd number makes no pairs, for which there would be another branch.
    jaxpr = str(jax.make_jaxpr(step)(state, batch(3), KEY))
    # fc8's kernel, and the inputs of fc8 and fc7; pool2 comes before bn2.
    assert jaxpr.count("= trilinear_derivative[") == 3


def test_batch_norm_that_is_not_trained_runs_with_its_running_statistics() -> None:
    graphdef, state, _ = start(normalized)
    data, keys = batch(8), jax.random.split(KEY, 8)

    def statistics(trained_layers: tuple[str, ...]) -> Any:
        run = jax.jit(forward(graphdef, trained_layers=trained_layers))
        return run(state.params, state.batch_stats, data, keys=keys)[1]

    after = statistics(("bn2", "fc8"))
    chex.assert_trees_all_equal(after["bn1"], state.batch_stats["bn1"])
    # The one that moves sees what the running statistics of the other make.
    model = nnx.merge(graphdef, state.params, state.batch_stats)
    x = model.features(Normalization(MEAN, STD)(data["image"]), ["conv2"])["conv2"]
    mean = 0.1 * x.mean((0, 1, 2))
    np.testing.assert_allclose(after["bn2"]["mean"], mean, rtol=1e-4, atol=1e-6)
    assert np.abs(statistics(())["bn2"]["mean"] - mean).max() > 1e-3


def test_an_unknown_trained_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"no weights of a layer 'fc9'.*fc8"):
        start(config=OptimizerConfig(trained_layers=("fc9",)))


def test_eight_images_are_learned_by_heart() -> None:
    graphdef, state, step = plain_step()
    data = batch(8)
    coarse = np.random.default_rng(1).integers(0, 256, (8, 4, 4, 1), np.uint8)
    data["image"] = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for _ in range(300):
        state, sums = step(state, data, KEY)
        if float(sums["loss"]) / 8 < 0.1:
            break
    else:
        raise AssertionError(f"loss {float(sums['loss']) / 8} after 300 steps")
    outputs, _ = forward(graphdef)(state.params, {}, data)
    sums = CLASSIFICATION.objective(outputs, data)
    assert float(sums["top1_error"]) == 0 and float(sums["weight"]) == 8


def test_dropout_depends_on_the_step_and_on_nothing_else() -> None:
    graphdef, state, optimizer = start(functools.partial(network, dropout=0.5))
    step, data = jitted(graphdef, optimizer), batch(8)
    again = step(state, data, KEY)[1]["loss"]
    assert step(state, data, KEY)[1]["loss"] == again
    later = state.replace(step=jnp.int32(1))
    assert step(later, data, KEY)[1]["loss"] != again


def test_every_image_of_every_step_has_its_own_dropout() -> None:
    keys = [jax.random.key_data(image_keys(KEY, jnp.int32(s), 4)) for s in (0, 1)]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 8


def test_batch_statistics_follow_the_batches() -> None:
    graphdef, state, optimizer = start(normalized)
    data = batch(8)
    after, _ = jitted(graphdef, optimizer)(state, data, KEY)
    model = nnx.merge(graphdef, state.params, state.batch_stats)
    x = model.features(Normalization(MEAN, STD)(data["image"]), ["conv1"])["conv1"]
    np.testing.assert_allclose(
        after.batch_stats["bn1"]["mean"],
        0.1 * x.mean((0, 1, 2)),
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        after.batch_stats["bn1"]["var"],
        0.9 + 0.1 * x.var((0, 1, 2), ddof=1),
        rtol=1e-4,
    )


def test_eight_devices_equal_one() -> None:
    assert jax.device_count() == 8
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        graphdef, state, optimizer = start(functools.partial(network, dropout=0.5))
        shardings = jax.tree.map(lambda _, m=mesh: replicated(m), state)
        state = jax.device_put(state, shardings)
        step = jit_train_step(forward(graphdef), optimizer, 1, shardings)
        losses = []
        for i in range(4):
            state, sums = step(state, shard_batch(mesh, batch(16, seed=i)), KEY)
            losses.append(float(sums["loss"]))
        assert len(state.params["fc7"]["kernel"].sharding.device_set) == len(devices)
        results.append((losses, jax.device_get(state.params)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


def test_padding_moves_the_window_on_each_preprocessed_image() -> None:
    graphdef, state, _ = start()
    data = batch(4)
    offsets = np.array([[0, 0], [3, -2], [-4, 1], [2, 4]], np.int32)
    pad = 4
    padded = np.pad(
        data["image"],
        ((0, 0), (pad, pad), (pad, pad), (0, 0)),
        constant_values=int(MEAN[0]),  # zero after preprocessing
    )
    moved = np.stack(
        [
            image[pad + down :, pad + right :][:32, :32]
            for image, (down, right) in zip(padded, offsets, strict=True)
        ]
    )
    run = jax.jit(lambda data: forward(graphdef)(state.params, {}, data)[0])
    got = run(data | {"offset": offsets})
    chex.assert_trees_all_close(got, run(data | {"image": moved}), rtol=1e-5)
    assert np.abs(np.asarray(got - run(data)))[1:].max() > 1e-3

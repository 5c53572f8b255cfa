"""Two images side by side: the numbers of single ones, on TPU alone, within a chip."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tests.training.test_program import collectives, config
from vgg_jax.distributed import batch_sharding, make_mesh, replicate
from vgg_jax.kernels import tpu
from vgg_jax.models.layers import (
    BatchNorm,
    Conv,
    FullyConnected,
    Layer,
    LocalResponseNorm,
    MaxPool,
    Relu,
    in_running_order,
)
from vgg_jax.models.network import ConvNet
from vgg_jax.training import program as program_file
from vgg_jax.training.program import build_program

# Side 11: odd, so that a window is partial. With 16 lanes conv "c" fills them.
STAGE = (
    Conv("a", 5, 3, padding=1),
    Relu("relu_a"),
    Conv("b", 6, 3, padding=1),
    Relu("relu_b"),
    MaxPool("pool", 3, 2, ceil_mode=True),
)
ROWS = (
    *STAGE,
    Conv("c", 9, 3, padding=1),
    Relu("relu_c"),
    Conv("d", 4, 3, padding=1),
    MaxPool("end", 2, 2, ceil_mode=False),
    FullyConnected("fc", 3, 2),
)


@pytest.fixture
def as_on_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the forms for TPU on any platform."""

    def choose(*args: Any, default: Any, **forms: Any) -> Any:
        return forms.get("tpu", default)(*args)

    monkeypatch.setattr(lax, "platform_dependent", choose)


def network(layers: tuple[Layer, ...], dtype: str = "float32") -> tuple[Any, Any]:
    """The graph of a network, and parameters with biases."""
    model = ConvNet(layers, num_classes=3, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), state
    )


def scores(graphdef: Any, devices: int | None, params: Any, x: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    model.devices = devices
    return model.run(x, model.layers)


def with_gradients(graphdef: Any, devices: int | None, params: Any, x: Any) -> Any:
    """The scores, and the gradients of parameters and images."""
    y, vjp = jax.vjp(functools.partial(scores, graphdef, devices), params, x)
    return y, vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize(
    ("lanes", "dtype"), [(16, "float32"), (128, "float32"), (16, "bfloat16")]
)
def test_values_and_gradients_are_those_of_single_images(
    monkeypatch: pytest.MonkeyPatch, as_on_tpu: None, lanes: int, dtype: str
) -> None:
    monkeypatch.setattr(tpu, "LANES", lanes)
    graphdef, params = network(ROWS, dtype)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 11, 11, 3)), jnp.float32)
    mesh = make_mesh()
    args = replicate(mesh, params), jax.device_put(x, batch_sharding(mesh))
    pairs = jax.jit(functools.partial(with_gradients, graphdef, 8))
    plain = jax.jit(functools.partial(with_gradients, graphdef, None))(params, x)
    found = jax.tree.leaves(pairs(*args))
    tolerance = 1e-6 if dtype == "float32" else 0.06
    for got, expected in zip(found, jax.tree.leaves(plain), strict=True):
        largest = float(jnp.abs(expected.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            got.astype(jnp.float32),
            expected.astype(jnp.float32),
            rtol=0,
            atol=tolerance * max(largest, 1.0),
        )
    if dtype == "float32":
        text = pairs.lower(*args).compile().as_text()
        most = max(a.size for a in jax.tree.leaves(params))
        assert 0 < max(collectives(text)) <= 4 * most  # gradients of kernels, no maps


NORMALIZED = (
    STAGE[0],
    BatchNorm("bn_a"),
    *STAGE[1:3],
    BatchNorm("bn_b"),
    *STAGE[3:],
    Conv("c", 9, 3, padding=1),
    BatchNorm("bn_c"),
    Relu("relu_c"),
    Conv("d", 4, 3, padding=1),
    BatchNorm("bn_d"),
    Relu("relu_d"),
    MaxPool("end", 2, 2, ceil_mode=False),
    FullyConnected("fc", 3, 2),
)


@pytest.mark.parametrize(
    ("train", "counted"), [(True, None), (True, 0), (True, 5), (False, 5)]
)
def test_batch_normalization_takes_the_statistics_of_all_images(
    monkeypatch: pytest.MonkeyPatch, as_on_tpu: None, train: bool, counted: int | None
) -> None:
    """`counted` of 16 images, on 8 devices, enter the statistics; None is no mask."""
    monkeypatch.setattr(tpu, "LANES", 16)
    graphdef, params = network(NORMALIZED)
    params = jax.tree.map_with_path(
        lambda path, a: 1 + jnp.abs(a) if "var" in str(path) else a, params
    )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 11, 11, 3)), jnp.float32)
    mask = None
    if counted is not None:  # not the same number of first and of second images
        mask = jnp.asarray(np.random.default_rng(2).permutation(16) < counted)

    def run(devices: int | None, params: Any, x: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        model.devices = devices
        y = model.run(x, model.layers, train=train, counted=mask)
        return y, nnx.state(model, nnx.BatchStat)

    def with_gradients(devices: int | None) -> Any:
        step = functools.partial(run, devices)
        y, vjp, statistics = jax.vjp(step, params, x, has_aux=True)
        return (
            y,
            statistics,
            vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)),
        )

    model = nnx.merge(graphdef, params)
    model.devices = 8
    order = names(model._paired(model.layers, x, None, ()))
    assert order[-1] == "c" and {"bn_a", "bn_b"} < set(order)
    if train:  # row bn_d is that of the statistics, of both halves
        assert names(apart(model, train=True)) == [
            *("bn_c", "relu_c", "d", "bn_d", "end")
        ]
    else:
        assert names(apart(model))[:4] == ["c", "bn_c", "relu_c", "d"]
    found, expected = (jax.jit(with_gradients, static_argnums=0)(n) for n in (8, None))
    for got, want in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        largest = float(jnp.abs(want).max())
        assert np.isfinite(largest)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(largest, 1.0))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), found[1], nnx.state(model, nnx.BatchStat)
    )
    assert all(jax.tree.leaves(moved)) == (train and counted != 0)


def test_a_device_pairs_its_own_images() -> None:
    images = jnp.arange(12.0).reshape(12, 1, 1, 1)
    pairs = tpu.pair(images, 3)
    assert pairs.reshape(6, 2).tolist() == [
        *([0, 2], [1, 3]),
        *([4, 6], [5, 7]),
        *([8, 10], [9, 11]),
    ]
    np.testing.assert_array_equal(tpu.join(tpu.halves(pairs), 3), images)


@pytest.mark.parametrize(
    ("images", "devices", "expected"),
    [
        (4, 1, True),
        (4, 2, True),
        (4, 4, False),
        (6, 2, False),
        (3, 1, False),
        (0, 1, False),
    ],
)
def test_each_device_needs_an_even_number(
    images: int, devices: int, expected: bool
) -> None:
    assert tpu.can_pair(images, devices) == expected


def names(layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def apart(
    model: ConvNet,
    *,
    sizes: jax.Array | None = None,
    wanted: Sequence[str] = (),
    train: bool = False,
) -> tuple[Layer, ...]:
    """The rows that run on the images of pairs apart."""
    norms = [layer.name for layer in model.layers if isinstance(layer, BatchNorm)]
    order = in_running_order(model.layers, wanted, norms if train else ())
    x = jnp.zeros((16, 11, 11, 3))
    paired = model._paired(order, x, sizes, wanted)
    return model._apart(order[len(paired) :], sizes, wanted)


def paired(*layers: Layer) -> list[str]:
    """The names of the rows that run on pairs of images."""
    model = nnx.eval_shape(lambda: ConvNet(layers, rngs=nnx.Rngs(0)))
    model.devices = 2
    return names(model._paired(layers, jnp.zeros((4, 8, 8, 3)), None, ()))


def test_pairs_end_where_an_image_fills_the_lanes() -> None:
    wide = (*STAGE, Conv("c", 65, 3), Relu("relu_c"), Conv("d", 4, 3))
    assert paired(*wide) == ["a", "relu_a", "b", "relu_b", "pool", "c"]
    assert paired(*STAGE) == [row.name for row in STAGE]
    assert paired(Conv("a", 65, 3), *STAGE[1:]) == []


def test_maps_that_are_wanted_are_of_single_images(as_on_tpu: None) -> None:
    graphdef, params = network(ROWS)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 11, 11, 3)), jnp.float32)
    model = nnx.merge(graphdef, params)
    expected = model.features(x, names(ROWS))
    model.devices = 1
    found = {name: model.features(x, [name])[name] for name in ("relu_b", "pool", "d")}
    found |= model.features(x, ["a", "fc"])
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("lanes", [16, 128])
def test_dense_scores_of_images_of_several_sizes(
    monkeypatch: pytest.MonkeyPatch, as_on_tpu: None, lanes: int
) -> None:
    monkeypatch.setattr(tpu, "LANES", lanes)
    rows = [row for row in ROWS if row.name != "pool"]
    rows.insert(4, MaxPool("pool", 2, 2, ceil_mode=False))
    graphdef, params = network(tuple(rows))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 12, 14, 3)), jnp.float32)
    sizes = jnp.asarray([[12, 9], [11, 14], [8, 8], [10, 13]])
    model = nnx.merge(graphdef, params)
    expected = model.score_map(x, sizes=sizes)
    model.devices = 1
    assert len(model._paired(model.layers, x, sizes, ())) > 4
    is_apart = ["c", "relu_c", "d", "end"] if lanes == 16 else []
    assert names(apart(model, sizes=sizes)) == is_apart
    np.testing.assert_allclose(model.score_map(x, sizes=sizes), expected, atol=1e-4)


def test_images_of_pairs_run_apart_up_to_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tpu, "LANES", 16)

    def of(*layers: Layer, wanted: Sequence[str] = ()) -> list[str]:
        model = nnx.eval_shape(lambda: ConvNet(layers, rngs=nnx.Rngs(0)))
        model.devices = 8
        return names(apart(model, wanted=wanted))

    assert of(*ROWS) == of(*ROWS, wanted=["fc"]) == ["c", "relu_c", "d", "end"]
    assert of(*ROWS, wanted=["relu_c"]) == of(*ROWS, wanted=["end"]) == []
    lrn = LocalResponseNorm("norm", 5, 1e-4, 0.75, 2.0)
    assert of(*ROWS[:6], lrn, *ROWS[6:]) == []
    assert of(*ROWS[:-2]) == []  # without a pool


def test_layers_that_mix_channels_have_none() -> None:
    lrn = LocalResponseNorm("norm", 5, 1e-4, 0.75, 2.0)
    assert paired(*STAGE[:2], lrn, *STAGE[2:]) == []


@pytest.mark.usefixtures("small_vgg")  # the network of `config`
def test_the_program_for_tpu_has_pairs_and_that_for_cpu_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lowered(platform: str, **changes: Any) -> str:
        monkeypatch.setattr(program_file, "platform_of", lambda mesh: platform)
        settings = config(**changes, dtype="float32", shard_fc=False)
        program = build_program(settings, make_mesh())
        traced = program.train_step.trace(*program.arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    pair_of_kernels = "3x3x6x16xf32"  # conv1_1 has 3 channels in and 8 out
    assert pair_of_kernels in lowered("tpu")
    assert pair_of_kernels not in lowered("cpu")
    assert pair_of_kernels not in lowered("cuda")
    assert pair_of_kernels not in lowered("tpu", batch_size=8)  # one a device

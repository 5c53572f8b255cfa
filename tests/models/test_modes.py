"""A network as users of Flax NNX know modules: modes, keys, empty batches, export."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from vgg_jax.models import MODELS, ConvNet, create_model
from vgg_jax.models import layers as rows
from vgg_jax.models.measure import summary
from vgg_jax.models.modules import BatchNorm

# One of each kind of row, for images of 13x13 and more.
LAYERS = (
    rows.Conv("conv1", 4, kernel=3, stride=2, padding=1),
    rows.BatchNorm("bn1"),
    rows.Relu("relu1"),
    rows.LocalResponseNorm("norm1", size=3, alpha=0.1, beta=0.75, k=1.0),
    rows.MaxPool("pool1", 3, 2, ceil_mode=True),
    rows.Conv("conv2", 4, kernel=1),
    rows.AveragePool("pool2", 2, 2, ceil_mode=True),
    rows.Dropout("drop2", 0.5),
    rows.FullyConnected("fc3", 64, kernel=2),
    rows.Dropout("drop3", 0.5),
)


def new(**options: Any) -> ConvNet:
    return ConvNet(LAYERS, num_classes=64, rngs=nnx.Rngs(0), **options)


def images(count: int = 4, height: int = 13, width: int = 13) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(1, 1, (count, height, width, 3)), jnp.float32)


def answers(model: ConvNet, train: bool | None = None, rngs: Any = None) -> Any:
    """The map of a copy of a network, and its running mean after that."""
    model = nnx.clone(model)
    return model(images(4, 5, 5), train=train, rngs=rngs), model.bn1.mean[...]


def modal(**options: Any) -> ConvNet:
    """A network of the rows that have modes alone."""
    layers = [rows.BatchNorm("bn1"), *(rows.Dropout(f"drop{i}", 0.3) for i in (1, 2))]
    return ConvNet(layers, rngs=nnx.Rngs(0, dropout=1), **options)


KEY = jax.random.key(3)


def test_modes_are_those_of_nnx_and_a_keyword_goes_before_them() -> None:
    model = modal()
    evaluated, trained = answers(model), answers(model, True, KEY)
    np.testing.assert_array_equal(evaluated[1], 0)
    assert abs(trained[1]).min() > 1e-3
    assert (trained[0] == 0).mean() > 0.2

    def trains(model: ConvNet) -> None:
        chex.assert_trees_all_equal(answers(model, None, KEY), trained)
        chex.assert_trees_all_equal(answers(model, False, KEY), evaluated)

    def evaluates(model: ConvNet) -> None:
        chex.assert_trees_all_equal(answers(model, None, KEY), evaluated)
        chex.assert_trees_all_equal(answers(model, True, KEY), trained)

    evaluates(model)
    model.train()
    trains(model)
    evaluates(nnx.view(model, deterministic=True, use_running_average=True))
    model.eval()
    evaluates(model)
    trains(nnx.view(model, deterministic=False, use_running_average=False))


def test_a_view_of_one_kind_of_layer_leaves_the_other() -> None:
    dropped = answers(nnx.view(modal(), deterministic=False), None, KEY)
    np.testing.assert_array_equal(dropped[1], 0)
    assert (dropped[0] == 0).mean() > 0.2
    moved = answers(nnx.view(modal(), use_running_average=False))
    assert abs(moved[1]).min() > 1e-3
    assert (moved[0] == 0).mean() == 0


def test_a_key_or_keys_or_streams_drive_dropout() -> None:
    model = modal()
    model.set_attributes(nnx.Dropout, deterministic=False)
    run = functools.partial(answers, model, None)
    (one, _), (again, _), (other, _) = run(KEY), run(KEY), run(jax.random.key(4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(run(jax.random.PRNGKey(3))[0], one)
    streams = run(nnx.Rngs(dropout=3))[0]
    assert (streams == 0).mean() > 0.2
    np.testing.assert_array_equal(streams, run(nnx.Rngs(dropout=3))[0])

    keys = jax.random.split(KEY, 4)
    each, _ = run(keys)
    np.testing.assert_array_equal(run(jax.random.key_data(keys))[0], each)
    # An image's dropout follows its own key and no other image.
    again, _ = run(keys[jnp.array([0, 3, 2, 1])])
    np.testing.assert_array_equal(again[0], each[0])
    np.testing.assert_array_equal(again[2], each[2])
    assert ((again[1] == 0) != (each[1] == 0)).any()
    masks = np.asarray(each == 0)
    assert all((masks[0] != mask).any() for mask in masks[1:])
    with pytest.raises(ValueError, match=r"one key or keys \[4\], .* got keys \[3\]"):
        run(keys[:3])


def test_a_network_keeps_its_own_stream_where_it_is_asked_to() -> None:
    model = modal(keep_rngs=True)
    model.train()
    assert (answers(model)[0] == 0).mean() > 0.2


def test_a_key_makes_the_weights_that_its_streams_make() -> None:
    name, options = "nin_cifar", {"width": 1 / 64}
    by_key, by_streams = jax.jit(
        lambda key: [
            nnx.state(create_model(name, rngs=rngs, **options))
            for rngs in (key, nnx.Rngs(key))
        ]
    )(jax.random.key(5, impl="rbg"))
    chex.assert_trees_all_equal(by_key, by_streams)


def test_features_and_score_map_train() -> None:
    graphdef, state = nnx.split(new())

    @jax.jit
    def run(state: Any, x: jax.Array) -> Any:
        train = {"train": True, "rngs": KEY}
        models = [nnx.merge(graphdef, state) for _ in range(3)]
        logits = models[0](x, **train)
        score_map = models[1].score_map(x, **train)
        maps = models[2].features(x, ("pool2", "drop2", "bn1"), **train)
        return logits, score_map, maps, [m.bn1.mean[...] for m in models]

    logits, score_map, maps, means = run(state, images())
    np.testing.assert_allclose(score_map.mean((1, 2)), logits, rtol=1e-6)
    assert (np.asarray(logits) == 0).mean() > 0.2
    kept = np.asarray(maps["drop2"]) != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(maps["drop2"], 2 * kept * maps["pool2"], rtol=1e-6)
    np.testing.assert_allclose(maps["bn1"].mean((0, 1, 2)), 0, atol=1e-5)
    for mean in means:
        np.testing.assert_array_equal(mean, means[0])
    assert abs(np.asarray(means[0])).min() > 1e-3


def test_features_of_images_of_several_sizes_are_those_of_each_alone() -> None:
    graphdef, state = nnx.split(new())
    names, sizes = ("bn1", "pool1", "fc3"), ((13, 16), (17, 14))
    batch = np.full((2, 18, 17, 3), 9.0, np.float32)
    pictures = [images(1, *size)[0] for size in sizes]
    for row, picture in zip(batch, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture

    @functools.partial(jax.jit, static_argnames="train")
    def run(state: Any, x: jax.Array, sizes: Any, train: bool) -> Any:
        model = nnx.merge(graphdef, state)
        maps = model.features(x, names, sizes=sizes, train=train, rngs=KEY)
        return maps, (model.bn1.mean[...], model.bn1.var[...])

    found, _ = run(state, batch, jnp.asarray(sizes), False)
    for i, picture in enumerate(pictures):
        expected, _ = run(state, picture[None], None, False)
        for name, (alone,) in expected.items():
            full = np.zeros_like(found[name][i])
            full[: alone.shape[0], : alone.shape[1]] = alone
            np.testing.assert_allclose(found[name][i], full, rtol=1e-5, atol=1e-5)
    # The statistics of a batch are those of the images' own cells.
    _, (mean, variance) = run(state, batch, jnp.asarray(sizes), True)
    maps = [nnx.merge(graphdef, state).conv1(p[None])[0] for p in pictures]
    cells = np.concatenate([np.asarray(m).reshape(-1, 4) for m in maps])
    np.testing.assert_allclose(mean, 0.1 * cells.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * cells.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(("cells", "factor"), [(1, 0.0), (2, 2.0), (5, 1.25)])
def test_the_running_variance_is_that_of_torchvision(cells: int, factor: float) -> None:
    norm = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    norm.var[...] = jnp.array([4.0, 0.25])
    x = np.random.default_rng(0).normal(3, 2, (1, cells, 1, 2)).astype(np.float32)
    y = norm(jnp.asarray(x))
    batch = x.var((0, 1, 2))
    np.testing.assert_allclose(
        norm.var[...], 0.9 * np.array([4.0, 0.25]) + 0.1 * factor * batch, rtol=1e-5
    )
    np.testing.assert_allclose(norm.mean[...], 0.01 * x.mean((0, 1, 2)) * 10, rtol=1e-5)
    # The batch itself is normalized by its variance over n.
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(batch + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (1, 3, 1, 1), (3, 1, 1), (5, 1), (1,)])
def test_a_mask_counts_what_it_counts_when_spread_out(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2, 3, (4, 3, 5, 2)), jnp.float32)
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[:2] = True
    whole = np.broadcast_to(mask, (4, 3, 5, 1))
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    counted = np.asarray(x)[whole[..., 0]]
    expected = (x - counted.mean(0)) / np.sqrt(counted.var(0) + norm.epsilon)
    np.testing.assert_allclose(norm(x, mask=jnp.asarray(mask)), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (4, 1, 1, 2), (4, 3, 5, 2), (2,)])
def test_a_mask_that_is_not_of_cells_is_refused(shape: tuple[int, ...]) -> None:
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="broadcast"):
        norm(jnp.zeros((4, 3, 5, 2)), mask=jnp.ones(shape, bool))


def test_an_empty_batch_has_no_scores_and_a_gradient_of_zero() -> None:
    graphdef, params, rest = nnx.split(new(), nnx.Param, ...)

    @functools.partial(jax.jit, static_argnames="train")
    def gradients(params: Any, x: jax.Array, keys: jax.Array, train: bool) -> Any:
        def loss(params: Any, x: jax.Array) -> Any:
            model = nnx.merge(graphdef, params, rest)
            y = model(x, train=train, rngs=keys)
            return y.sum(), (y, nnx.state(model, nnx.BatchStat))

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    keys = jax.random.split(KEY, 0)
    for train in (False, True):
        (dparams, dx), (y, statistics) = gradients(params, images(0), keys, train)
        assert (y.shape, dx.shape) == ((0, 64), (0, 13, 13, 3))
        assert all(not leaf.any() for leaf in jax.tree.leaves(dparams))
        chex.assert_trees_all_equal(statistics, nnx.state(new(), nnx.BatchStat))


def test_forward_mode_is_the_transpose_of_reverse_mode() -> None:
    graphdef, params, statistics = nnx.split(new(), nnx.Param, nnx.BatchStat)
    rest = nnx.to_pure_dict(statistics)
    x, rng = images(), np.random.default_rng(1)
    direction = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
    )

    @jax.jit
    def both(params: Any, direction: Any) -> Any:
        def scores(params: Any) -> jax.Array:
            return nnx.merge(graphdef, params, rest)(x, train=True, rngs=KEY)

        y, change = jax.jvp(scores, (params,), (direction,))
        (gradients,) = jax.vjp(scores, params)[1](jnp.cos(y))
        products = jax.tree.map(lambda a, b: (a * b).sum(), gradients, direction)
        return (change * jnp.cos(y)).sum(), sum(jax.tree.leaves(products))

    forward, reverse = both(params, direction)
    assert abs(forward) > 1
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


def test_an_exported_network_takes_any_batch_and_size_on_any_platform() -> None:
    graphdef, state = nnx.split(new())

    def run(state: Any, x: jax.Array, sizes: jax.Array) -> Any:
        model = nnx.merge(graphdef, state)
        maps = model.score_map(x), model.score_map(x, sizes=sizes)
        return model(x), *maps, model.features(x, ("pool1", "conv2"))

    constraints = ("h >= 13", "w >= 13")
    shape = export.symbolic_shape("b, h, w, 3", constraints=constraints)
    arguments = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((shape[0], 2), jnp.int32),
    )
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(jax.jit(run), platforms=platforms)(*arguments)
    assert exported.platforms == platforms
    for sides in ((2, 13, 13), (3, 22, 15)):
        given = state, images(*sides), jnp.full((sides[0], 2), 13)
        chex.assert_trees_all_close(
            exported.call(*given), jax.jit(run)(*given), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="h >= 13"):
        exported.call(state, images(1, 12, 13), jnp.full((1, 2), 12))


def test_a_side_that_is_known_is_still_looked_at_beside_one_that_is_not() -> None:
    graphdef, state = nnx.split(nnx.eval_shape(new))
    (width,) = export.symbolic_shape("w")
    x = jax.ShapeDtypeStruct((1, 3, width, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"at least \d+x\d+ pixels, got 3xw"):
        jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, x)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_known_of_features_is_what_the_tables_say(name: str) -> None:
    model = nnx.eval_shape(lambda: create_model(name, in_channels=1, rngs=nnx.Rngs(0)))
    info = model.feature_info
    assert list(info) == [layer.name for layer in model.layers]
    for row in summary(model).layers:
        assert info[row.layer] == (row.output[2], row.jump, row.receptive_field)


def test_features_of_vgg16_by_hand() -> None:
    info = nnx.eval_shape(lambda: create_model("vgg16", rngs=nnx.Rngs(0))).feature_info
    assert info["relu1_1"] == (64, 1, 3)
    assert info["pool5"] == (512, 32, 212)
    assert info["relu7"] == (4096, 32, 404)
    assert info["pool5"].channels == 512
    assert (info["pool5"].stride, info["pool5"].receptive_field) == (32, 212)


def test_a_name_keeps_its_own_option_where_that_is_none() -> None:
    def names(name: str, **options: Any) -> list[str]:
        model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
        return [layer.name for layer in model.layers]

    assert "norm1" in names("vgg11_lrn", lrn=None, batch_norm=None)
    assert "bn1_1" in names("vgg11_bn", batch_norm=None)
    assert not {"norm1", "bn1_1"} & set(names("vgg11", lrn=None, batch_norm=None))
    assert {"norm1", "bn1_1"} < set(names("vgg11", lrn="caffe", batch_norm=True))
    assert names("nin_tutorial", final_relu=None)[-1] == "relu_cccp8"
    assert names("nin_tutorial", final_relu=False)[-1] == "cccp8"
    assert names("nin_cifar", final_relu=None)[-1] == "cccp6"
    assert names("nin_cifar", final_relu=True)[-1] == "relu_cccp6"
    assert names("vgg11", num_classes=None)[-1] == "pool5"


def test_kept_streams_serve_calls_without_any() -> None:
    options = {"width": 0.02, "fc_kernel": 1, "num_classes": 3, "in_channels": 1}
    images = jnp.ones((2, 32, 32, 1))
    rngs = nnx.Rngs(params=0, dropout=1)
    model = create_model("vgg11", rngs=rngs, keep_rngs=True, **options)
    model.train()
    assert model(images).shape == (2, 3)
    # Without a stream of that name nothing is kept, and training says so.
    model = create_model("vgg11", rngs=nnx.Rngs(0), keep_rngs=True, **options)
    model.train()
    with pytest.raises(ValueError, match="rngs"):
        model(images)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "nin_cifar"])
def test_networks_can_be_tabulated(name: str) -> None:
    options = {} if name == "nin_cifar" else {"fc_kernel": 1}
    model = create_model(name, width=1 / 16, rngs=nnx.Rngs(0), **options)
    table = nnx.tabulate(model, jnp.ones((1, 32, 32, 3)))
    assert model.layers[0].name in table

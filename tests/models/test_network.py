"""What every network shares: errors, features, precision, initialisation, training mode."""

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
from vgg_jax import MODELS, create_model

SMALL = {"width": 1 / 8, "num_classes": 7, "fc_kernel": 1}


def abstract(name: str, **options: Any) -> tuple[Any, Any]:
    """A network's graph and shapes; nothing is computed."""
    return nnx.split(
        nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    )


def shape_of(name: str, *shape: int, **options: Any) -> tuple[int, ...]:
    """The shape of `model(images)`."""
    graphdef, state = abstract(name, **options)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    out = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, x)
    assert out.dtype == jnp.float32
    return out.shape


def train_mode(graphdef: Any, params: Any, x: np.ndarray, name: str) -> Any:
    """jit of a key -> (`model(x, train=True)`, an intermediate when evaluating)."""

    @jax.jit
    def forward(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model, images = nnx.merge(graphdef, params), jnp.asarray(x)
        logits = model(images, train=True, rngs=nnx.Rngs(dropout=key))
        return logits, model.features(images, [name])[name]

    return lambda seed: map(np.asarray, forward(jax.random.key(seed)))


def equations(jaxpr: Any) -> Any:
    """Every equation, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from equations(inner)
            elif hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)


# Names and errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg_16", {}, "unknown model 'vgg_16': did you mean 'vgg16'"),
        ("nin", {}, "unknown model 'nin': .*nin_cifar"),
        ("resnet50", {}, "unknown model 'resnet50': known are vgg11, .*nin_tutorial"),
        ("vgg16", {"droput": 0.1}, "vgg16 has no option 'droput': .*'dropout'"),
        ("vgg16", {"stages": ()}, "vgg16 has no option 'stages'"),
        (
            "nin_cifar",
            {"fc_kernel": 1},
            "nin_cifar has no option 'fc_kernel': known are",
        ),
        ("vgg16", {"head": "globalpool"}, "unknown head 'globalpool': .*'global_pool'"),
        ("vgg16", {"init": "glorott"}, "unknown init 'glorott': did you mean 'glorot'"),
        ("nin_cifar", {"init": "cafe"}, "unknown init 'cafe': "),
        ("vgg11", {"lrn": "cafe"}, "unknown lrn 'cafe': did you mean 'caffe'"),
    ],
)
def test_an_unknown_name_offers_the_nearest(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("name", "least", "options"),
    [
        ("vgg16", 224, {}),
        ("vgg16", 32, {"fc_kernel": 1}),
        ("vgg11_bn", 32, {"head": "global_pool"}),
        ("vgg16_c", 193, {"ceil_mode": True}),  # 193, 97, 49, 25, 13, 7
        ("nin_imagenet", 39, {}),  # 8, 4, 2, 1
        ("nin_tutorial", 67, {}),  # 15, 7, 3, 1
        ("nin_cifar", 4, {}),  # 4, 2, 1
    ],
)
def test_an_image_too_small_is_told_what_fits(
    name: str, least: int, options: dict[str, Any]
) -> None:
    graphdef, state = abstract(name, **options)

    def shape(height: int, width: int) -> tuple[int, ...]:
        x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, x).shape

    assert shape(least, least) == (1, 1000)
    for height, width in ((least - 1, least), (least, least - 1), (1, 1)):
        message = f"at least {least}x{least} pixels, got {height}x{width}"
        with pytest.raises(ValueError, match=message):
            shape(height, width)


@pytest.mark.parametrize("shape", [(1, 224, 224, 1), (1, 3, 224, 224), (224, 224, 3)])
def test_a_wrong_shape_is_told_the_right_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[N, H, W, 3\], got ") as e:
        shape_of("vgg16", *shape)
    assert str(list(shape)) in str(e.value)
    with pytest.raises(ValueError, match=r"expected images \[N, H, W, 1\]"):
        shape_of("vgg16", 1, 224, 224, 3, in_channels=1)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (28, {"fc_kernel": 1, "ceil_mode": True}),
        (32, {"fc_kernel": 1}),
        (32, {"head": "global_pool"}),
        (224, {}),
        (512, {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_class_serves_28_to_512_pixels(
    size: int, channels: int, options: dict[str, Any]
) -> None:
    options = {"in_channels": channels, "num_classes": 10, "width": 0.5} | options
    assert shape_of("vgg16", 2, size, size, channels, **options) == (2, 10)
    assert shape_of(
        "vgg16", 2, size, size, channels, **options | {"num_classes": None}
    )[0:4:3] == (2, 256)


@pytest.mark.parametrize("name", ["vgg11", "nin_cifar"])
def test_a_backbone_has_no_score_map(name: str) -> None:
    graphdef, state = abstract(name, num_classes=None)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(ValueError, match="num_classes=None made a backbone"):
        jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).score_map(x), state, x)


# Features


def test_features_are_the_named_ones_in_the_order_asked() -> None:
    graphdef, params = network("vgg11", **SMALL)
    x = images(2, 32, 32, 3)
    names = ("pool2", "relu1_1", "conv3_2")
    features = jax.jit(lambda p, x: nnx.merge(graphdef, p).features(x, names))
    seen = nnx.merge(graphdef, params).features(jnp.asarray(x), ())
    assert seen == {}
    want = reference.vgg("A", params, x.astype(np.float64), fc_kernel=1)
    got = features(params, x)
    assert_same({n: got[n] for n in names}, {n: want[n] for n in names})
    order: list[str] = []

    def traced(p: Any, x: jax.Array) -> None:
        order.extend(nnx.merge(graphdef, p).features(x, names))

    jax.eval_shape(traced, params, x)
    assert tuple(order) == names


@pytest.mark.parametrize(
    ("names", "convolutions", "pools"),
    [
        (("conv1_1",), 1, 0),
        (("relu3_3", "pool1"), 7, 2),
        (("pool5",), 13, 5),
        (("relu7", "relu6"), 15, 5),
        (("fc8",), 16, 5),
    ],
)
def test_features_compute_nothing_past_the_deepest(
    names: tuple[str, ...], convolutions: int, pools: int
) -> None:
    graphdef, state = abstract("vgg16")
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s).features(x, names))(
        state, x
    )
    found = [equation.primitive.name for equation in equations(jaxpr.jaxpr)]
    assert found.count("conv_general_dilated") == convolutions
    assert sum(name.startswith("reduce_window") for name in found) == pools


def test_shallow_features_of_an_image_too_small_for_the_rest() -> None:
    graphdef, state = abstract("vgg16")
    x = jax.ShapeDtypeStruct((1, 9, 8, 3), jnp.float32)

    def features(name: str) -> Any:
        return jax.eval_shape(
            lambda s, x: nnx.merge(graphdef, s).features(x, [name]), state, x
        )

    assert features("pool3")["pool3"].shape == (1, 1, 1, 256)
    with pytest.raises(ValueError, match="at least 16x16"):
        features("pool4")


def test_an_unknown_feature_offers_the_nearest() -> None:
    graphdef, params = network("vgg11", **SMALL)
    model = nnx.merge(graphdef, params)
    with pytest.raises(ValueError, match="no layer 'relu_1_1': did you mean 'relu1_1'"):
        model.features(jnp.zeros((1, 32, 32, 3)), ("pool1", "relu_1_1"))


# Precision


@pytest.mark.parametrize("name", ["vgg11_lrn", "nin_cifar"])
def test_bfloat16_computes_in_bfloat16(name: str) -> None:
    options: dict[str, Any] = {"width": 1 / 4, "num_classes": 7}
    if name == "vgg11_lrn":
        options |= {"fc_kernel": 1, "batch_norm": True}
    graphdef, params = network(name, dtype="bfloat16", **options)
    x = images(4, 32, 32, 3)
    forward = lambda p, x: nnx.merge(graphdef, p)(x)  # noqa: E731
    windows = ("conv_general_dilated", "reduce_window", "reduce_window_max")
    jaxpr = jax.make_jaxpr(forward)(params, x)
    found = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in windows]
    assert len([e for e in found if e.primitive.name == windows[0]]) >= 9
    for equation in found:
        variables = [*equation.invars, *equation.outvars]
        assert {v.aval.dtype for v in variables} == {jnp.dtype("bfloat16")}
    _, state = abstract(name, dtype="bfloat16", **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    got = jax.jit(forward)(params, x)
    assert got.dtype == jnp.float32
    full, _ = network(name, **options)
    want = jax.jit(lambda p, x: nnx.merge(full, p)(x))(params, x)
    difference = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-5 < difference < 0.05


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_with_and_without_jit(self) -> None:
        graphdef, params = network("nin_cifar", width=1 / 16, num_classes=3)

        @self.variant
        def forward(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graphdef, params)
            return model(x), model.score_map(x)

        x = images(2, 16, 16, 3)
        logits, score_map = forward(params, jnp.asarray(x))
        chex.assert_shape(logits, (2, 3))
        want = reference.nin_cifar(params, x.astype(np.float64))
        got = {"score_map": score_map, "logits": logits}
        assert_same(got, {name: want[name] for name in got})


# Initialisation


def deviations(fan_in: int, fan_out: int) -> dict[str, float]:
    return {
        "paper": 0.1,
        "caffe_001": 0.01,
        "glorot": (2 / (fan_in + fan_out)) ** 0.5,
        "he": (2 / fan_in) ** 0.5,
    }


def initial(name: str, **options: Any) -> Any:
    """jit of a seed -> fresh weights, from "rbg" numbers: XLA compiles them faster."""

    @jax.jit
    def create(key: jax.Array) -> Any:
        model = create_model(name, rngs=nnx.Rngs(key), **options)
        return nnx.to_pure_dict(nnx.state(model))

    return lambda seed: jax.device_get(create(jax.random.key(seed, impl="rbg")))


@pytest.mark.parametrize(
    ("name", "init"),
    [
        ("vgg11", None),
        ("vgg11", "he"),
        ("nin_cifar", None),
        ("nin_cifar", "paper"),
        ("nin_cifar", "caffe_001"),
    ],
)
def test_every_kernel_has_the_deviation_of_its_scheme(
    name: str, init: str | None
) -> None:
    chosen = {} if init is None else {"init": init}
    init = init or "glorot"
    params = initial(name, width=1 / 4, num_classes=50, **chosen)(0)
    seen = []
    for module, leaves in params.items():
        kernel = leaves["kernel"]
        side, _, inputs, outputs = kernel.shape
        fan_in, fan_out = side * side * inputs, side * side * outputs
        if module.startswith("fc"):  # a matrix: each output is one unit
            fan_out = outputs
        want = deviations(fan_in, fan_out)[init]
        # Five deviations of the estimate; a uniform or truncated law has less.
        tolerance = 5 / np.sqrt(2 * kernel.size)
        assert abs(kernel.std() / want - 1) < tolerance, module
        assert abs(kernel.mean()) < 5 * want / np.sqrt(kernel.size), module
        largest = np.abs(kernel).max() / want
        if init == "glorot":  # uniform
            assert 1.6 < largest < 1.733, module
        elif init == "he":  # truncated at two deviations of the uncut normal
            assert 2 < largest < 2.28, module
        else:
            assert largest > 2.5, module
        assert not leaves["bias"].any()
        seen.append(tuple(kernel.ravel()[:9] / want))
    assert len(set(seen)) == len(seen)


def test_batch_norm_starts_as_the_identity_does() -> None:
    params = initial("vgg11_bn", width=1 / 32, head="global_pool")(0)
    norms = [leaves for module, leaves in params.items() if module.startswith("bn")]
    assert len(norms) == 8
    for leaves in norms:
        assert (leaves["scale"] == 1).all() and (leaves["var"] == 1).all()
        assert not leaves["bias"].any() and not leaves["mean"].any()


def test_the_seed_alone_makes_the_weights() -> None:
    create = initial("nin_cifar", width=1 / 8)
    one, again, other = create(0), create(0), create(1)
    chex.assert_trees_all_equal(one, again)
    for module, leaves in one.items():
        assert (leaves["kernel"] != other[module]["kernel"]).mean() > 0.99


# Training mode


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_one_half_and_where_the_papers_have_it(name: str) -> None:
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    rates = {n: v.rate for n, v in vars(model).items() if isinstance(v, nnx.Dropout)}
    places = ["drop6", "drop7"] if name.startswith("vgg") else ["drop3"]
    if name == "nin_cifar":
        places = ["drop1", "drop2"]
    assert rates == dict.fromkeys(places, 0.5)


def matrix(inputs: int, outputs: int, side: int = 1) -> np.ndarray:
    """A kernel that passes each channel on, from the centre of its window."""
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


def test_dropout_before_the_last_layer_of_the_global_pool_head() -> None:
    options = {"width": 1 / 4, "num_classes": 128, "head": "global_pool"}
    graphdef, params = network("vgg11", dropout=0.2, **options)
    pass_on(params, "fc8", bias=5.0)
    x = images(8, 32, 32, 3)
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


def test_dropout_keeps_the_expectation() -> None:
    options = {"width": 1 / 8, "fc_features": 256, "num_classes": 7, "fc_kernel": 1}
    graphdef, params = network("vgg11", **options)
    params["fc7"]["kernel"] = np.abs(params["fc7"]["kernel"])  # relu7 is then linear
    params["fc7"]["bias"] = np.abs(params["fc7"]["bias"])
    x = jnp.asarray(images(1, 32, 32, 3))

    @jax.jit
    def draws(params: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        def forward(key: jax.Array) -> jax.Array:
            rngs = nnx.Rngs(dropout=key)
            return nnx.merge(graphdef, params)(x, train=True, rngs=rngs)[0]

        return jax.lax.map(forward, keys), nnx.merge(graphdef, params)(x)[0]

    got, want = draws(params, jax.random.split(jax.random.key(0), 1000))
    assert (got.std(axis=0) > 0.01 * np.abs(want)).all()
    error = np.abs(got.mean(axis=0) - want) / (got.std(axis=0) / len(got) ** 0.5)
    assert error.max() < 4, error


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


def test_batch_statistics_are_the_batch_s_and_move_by_a_tenth() -> None:
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
        # The variance is the batch's own (divided by n); torchvision stores n - 1.
        moved = {"mean": conv.mean((0, 1, 2)), "var": conv.var((0, 1, 2))}
        for name, value in moved.items():
            expected = 0.9 * params[module][name] + 0.1 * value
            np.testing.assert_allclose(
                after[module][name], expected, rtol=1e-4, atol=1e-4, err_msg=module
            )
    _, unchanged = step(params, x, False)
    chex.assert_trees_all_equal(unchanged, params)


@pytest.mark.parametrize("name", ["vgg11_lrn", "nin_cifar"])
def test_every_parameter_has_a_gradient(name: str) -> None:
    options: dict[str, Any] = {"width": 1 / 8, "num_classes": 7}
    if name == "vgg11_lrn":
        options |= {"fc_kernel": 1, "batch_norm": True}
    graphdef, params = network(name, **options)
    x, labels = images(4, 32, 32, 3), np.arange(4)

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(nnx.merge(graphdef, params)(jnp.asarray(x)))
        return -log_p[np.arange(4), labels].mean()

    for module, leaves in gradients(params).items():
        for leaf, gradient in leaves.items():
            assert np.isfinite(gradient).all(), (module, leaf)
            assert (gradient != 0).mean() > 0.2, (module, leaf)

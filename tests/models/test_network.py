"""What every network shares: errors, features, precision, jit."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import assert_same, images, network
from vgg_jax import ConvNet, create_model
from vgg_jax.models import layers as rows
from vgg_jax.training.objectives import classification_sums

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


def equations(jaxpr: Any) -> Any:
    """Every equation, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from equations(inner)
            elif hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg_16", {}, "unknown model 'vgg_16': did you mean 'vgg16'"),
        ("VGG16", {}, r"unknown model 'VGG16': did you mean 'vgg16'\?$"),
        ("NIN-CIFAR", {}, "unknown model 'NIN-CIFAR': did you mean 'nin_cifar'"),
        ("nin", {}, "unknown model 'nin': .*nin_cifar"),
        ("resnet50", {}, "unknown model 'resnet50': known are vgg11, .*nin_tutorial"),
        ("vgg16", {"droput": 0.1}, "vgg16 has no option 'droput': .*'dropout'"),
        ("vgg16", {"Dropout": 0.1}, r"no option 'Dropout': did you mean 'dropout'\?$"),
        ("vgg16", {"stages": ()}, "vgg16 has no option 'stages'"),
        (
            "nin_cifar",
            {"fc_kernel": 1},
            "nin_cifar has no option 'fc_kernel': known are num_classes, width, "
            "dropout, final_relu, in_channels, init, dtype, keep_rngs$",
        ),
        ("vgg16", {"head": "globalpool"}, "unknown head 'globalpool': .*'global_pool'"),
        ("vgg16", {"init": "glorott"}, "unknown init 'glorott': did you mean 'glorot'"),
        ("nin_cifar", {"init": "cafe"}, "unknown init 'cafe': "),
        ("vgg11", {"lrn": "cafe"}, "unknown lrn 'cafe': did you mean 'caffe'"),
        ("vgg11", {"dtype": "flot32"}, "dtype 'flot32': did you mean 'float32'"),
        ("vgg11", {"dtype": "int32"}, "unknown dtype 'int32'"),
    ],
)
def test_an_unknown_name_offers_the_nearest(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {"num_classes": 0}, "num_classes of at least 1, got 0"),
        ("nin_cifar", {"in_channels": 0}, "in_channels of at least 1, got 0"),
        ("vgg11", {"width": 0.0}, "above 0, got 64 channels and width 0.0"),
        ("nin_cifar", {"width": float("inf")}, "above 0, .* width inf"),
        ("vgg11", {"fc_features": 0}, "above 0, got 0 channels"),
        ("vgg11", {"fc_kernel": 0}, "fc_kernel of at least 1, got 0"),
        ("vgg11", {"dropout": 1.0}, r"dropout rate in \[0, 1\), got 1.0"),
        ("nin_cifar", {"dropout": -0.1}, r"dropout rate in \[0, 1\), got -0.1"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


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
    ("size", "channels", "options"),
    [
        (28, 1, {"fc_kernel": 1, "ceil_mode": True}),
        (32, 3, {"fc_kernel": 1}),
        (32, 1, {"head": "global_pool"}),
        (512, 3, {}),
    ],
)
def test_one_class_serves_28_to_512_pixels(
    size: int, channels: int, options: dict[str, Any]
) -> None:
    options = {"in_channels": channels, "num_classes": 10} | options
    assert shape_of("vgg16", 2, size, size, channels, **options) == (2, 10)
    backbone = options | {"num_classes": None, "width": 0.5}
    *_, features = shape_of("vgg16", 2, size, size, channels, **backbone)
    assert features == 256


@pytest.mark.parametrize("name", ["vgg11", "nin_cifar"])
def test_a_backbone_has_no_score_map(name: str) -> None:
    graphdef, state = abstract(name, num_classes=None)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(ValueError, match="num_classes=None made a backbone"):
        jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).score_map(x), state, x)


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
    with pytest.raises(ValueError, match=r"expected names, such as \('pool1',\)"):
        model.features(jnp.zeros((1, 32, 32, 3)), "pool1")


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
    types = [
        ({str(v.aval.dtype) for v in e.invars}, {str(v.aval.dtype) for v in e.outvars})
        for e in found
    ]
    last = max(i for i, e in enumerate(found) if e.primitive.name == windows[0])
    assert types[:last] == [({"bfloat16"}, {"bfloat16"})] * last
    # The layer of the classes multiplies bfloat16, and nothing rounds its sums.
    assert types[last] == ({"bfloat16"}, {"float32"})
    assert all(type_ == ({"float32"}, {"float32"}) for type_ in types[last + 1 :])
    _, state = abstract(name, dtype="bfloat16", **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    got = jax.jit(forward)(params, x)
    assert got.dtype == jnp.float32
    full, _ = network(name, **options)
    want = jax.jit(lambda p, x: nnx.merge(full, p)(x))(params, x)
    difference = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-5 < difference < 0.05


def head_of_scores(
    weights: np.ndarray,
    bias: np.ndarray,
    relu: bool = False,
    dtype: str = "bfloat16",
) -> ConvNet:
    """A network of one layer, whose scores are images @ weights + bias."""
    layers: list[rows.Layer] = [rows.FullyConnected("fc8", len(bias), 1)]
    layers += [rows.Relu("relu8")] * relu
    options = {"in_channels": len(weights), "dtype": dtype, "rngs": nnx.Rngs(0)}
    model = ConvNet(layers, num_classes=len(bias), **options)
    model.fc8.kernel[...] = jnp.asarray(weights, jnp.float32)[None, None]
    model.fc8.bias[...] = jnp.asarray(bias, jnp.float32)
    return model


@pytest.mark.parametrize("relu", [False, True])
def test_bfloat16_scores_a_hundredth_apart_near_twelve_are_not_equal(
    relu: bool,
) -> None:
    # Steps of bfloat16 are 1/16 there.
    x = jnp.asarray([12.0, 2.0**-7, 2.0**-9]).reshape(1, 1, 1, 3)
    by_weights = head_of_scores(
        np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), np.zeros(2), relu
    )
    by_bias = head_of_scores(np.zeros((3, 2)), np.array([12.0, 12.01]), relu)
    for model in (by_weights, by_bias):
        scores = jax.jit(lambda x, model=model: model(x))(x)
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(np.diff(scores[0]), 0.01, atol=3e-4)


def test_bfloat16_scores_have_no_ties_that_count_as_errors() -> None:
    # Labels are the classes of float32: a top-1 error is rounding's alone.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1, 1, 64)).astype(np.float32)
    weights = rng.normal(size=(64, 100)) * 0.5
    model = head_of_scores(weights, np.zeros(100))
    labels = np.argmax(x[:, 0, 0] @ weights, axis=1)
    scores = np.asarray(model(jnp.asarray(x)))
    weight = jnp.ones(len(x))

    def top1_error(scores: np.ndarray) -> float:
        sums = classification_sums(jnp.asarray(scores), jnp.asarray(labels), weight)
        return float(sums["top1_error"]) / len(x)

    rounded = scores.astype(jnp.bfloat16).astype(np.float32)
    assert top1_error(scores) < 0.008 < 0.015 < top1_error(rounded)


def test_bfloat16_scores_have_the_gradients_of_bfloat16_layers() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 1, 1, 64)), jnp.float32)
    weights = rng.normal(size=(64, 8))

    def gradients(dtype: str) -> Any:
        graphdef, state = nnx.split(head_of_scores(weights, np.zeros(8), dtype=dtype))

        def loss(state: Any, x: jax.Array) -> jax.Array:
            return (nnx.merge(graphdef, state)(x) ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)

    for got, want in zip(
        *map(jax.tree.leaves, (gradients("bfloat16"), gradients("float32"))),
        strict=True,
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


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

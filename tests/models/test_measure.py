"""The tables against the papers and published costs, and what can be asked of them."""

import functools
import json

import pytest
from flax import nnx

from vgg_jax.models import MODELS, ConvNet, create_model
from vgg_jax.models.layers import AveragePool, Conv, Layer, MaxPool, Pool, Relu
from vgg_jax.models.measure import LayerSummary, Summary, receptive_field, summary


@functools.cache
def abstract(name: str) -> ConvNet:
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))


def by_name(measured: Summary) -> dict[str, LayerSummary]:
    return {row.layer: row for row in measured.layers}


# --- the papers ---


def test_paper_table_of_vgg16() -> None:
    rows = by_name(summary("vgg16"))
    assert rows["conv1_1"].output == (224, 224, 64)
    assert rows["conv1_1"].weights == 1_728
    assert rows["conv5_3"].output == (14, 14, 512)
    assert rows["conv5_3"].weights == 2_359_296
    assert rows["pool5"].output == (7, 7, 512)
    assert rows["fc6"].weights == 102_760_448
    assert rows["fc7"].weights == 16_777_216
    assert rows["fc8"].weights == 4_096_000
    assert rows["fc8"].biases == 1_000
    assert rows["fc8"].output == (1, 1, 1_000)
    assert summary("vgg16").weights + summary("vgg16").biases == 138_357_544


def test_activations_of_vgg16() -> None:
    measured = summary("vgg16")
    assert measured.activations == 15_087_080
    assert measured.activation_bytes == 4 * 15_087_080
    rows = by_name(measured)
    assert rows["conv1_2"].activations == 224 * 224 * 64
    assert rows["relu1_2"].output == (224, 224, 64)
    assert rows["relu1_2"].activations == rows["drop6"].activations == 0
    assert by_name(summary("vgg11_bn"))["bn1_1"].activations == 0
    assert by_name(summary("vgg11_lrn"))["norm1"].activations == 224 * 224 * 64


def test_where_the_quoted_24_million_come_from() -> None:
    # A sum in thousands, the image included, in which 4096, 4096 and 1000 units of the
    # fully-connected layers stand for thousands too.
    rows = [row for row in receptive_field("vgg16") if row.activations]
    image = 224 * 224 * 3
    maps = sum(row.activations for row in rows if not row.layer.startswith("fc"))
    units = sum(row.activations for row in rows if row.layer.startswith("fc"))
    quoted = image + maps + 1000 * units
    assert quoted == pytest.approx(24.4e6, rel=1e-2)
    assert 4 * quoted / 2**20 == pytest.approx(93, rel=5e-3)
    assert image + maps + units == 15_237_608


PUBLISHED = {  # parameters, receptive fields of pool5 and fc6
    "vgg11": (132_863_336, 150, 342),
    "vgg11_lrn": (132_863_336, 150, 342),
    "vgg13": (133_047_848, 156, 348),
    "vgg16_c": (133_638_952, 156, 348),
    "vgg16": (138_357_544, 212, 404),
    "vgg19": (143_667_240, 268, 460),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_receptive_fields(name: str) -> None:
    parameters, pool5, fc6 = PUBLISHED[name]
    measured = summary(name)
    rows = by_name(measured)
    assert measured.parameters == parameters
    assert measured.parameter_bytes == 4 * parameters
    assert rows["pool5"].receptive_field == pool5
    assert rows["fc6"].receptive_field == rows["fc8"].receptive_field == fc6
    assert rows["fc8"].jump == 32


GIGA_MULTIPLY_ADDS = {  # at 224, 256, 384, 512; two digits after the point at 224
    "vgg11": (7.61, 10.3, 26.4, 51.5),
    "vgg13": (11.31, 15.1, 37.3, 70.8),
    "vgg16_c": (11.77, 15.7, 38.7, 73.2),
    "vgg16": (15.47, 20.5, 49.6, 92.5),
    "vgg19": (19.63, 26.0, 61.8, 114.3),
}


@pytest.mark.parametrize("name", GIGA_MULTIPLY_ADDS)
def test_published_multiply_adds(name: str) -> None:
    model = abstract(name)
    found = [summary(model, n).multiply_adds / 1e9 for n in (224, 256, 384, 512)]
    at_224, *larger = GIGA_MULTIPLY_ADDS[name]
    assert found[0] == pytest.approx(at_224, abs=0.005)
    assert found[1:] == pytest.approx(larger, abs=0.05)


def test_published_costs_of_nin() -> None:
    imagenet = summary("nin_imagenet")
    cifar = summary("nin_cifar", 32, num_classes=10)
    assert imagenet.parameters == 7_595_176
    assert imagenet.multiply_adds / 1e9 == pytest.approx(1.10, abs=0.005)
    assert cifar.parameters == 966_986
    assert cifar.multiply_adds / 1e9 == pytest.approx(0.22, abs=0.005)
    pools = [imagenet.layers[0], *(r for r in imagenet.layers if "pool" in r.layer)]
    assert [row.output[0] for row in pools] == [54, 27, 13, 6]
    tutorial = summary("nin_tutorial", in_channels=1, num_classes=10)
    pools = [tutorial.layers[0], *(r for r in tutorial.layers if "pool" in r.layer)]
    assert [row.output[0] for row in pools] == [54, 26, 12, 5]


# --- receptive fields ---


def top_down(layers: tuple[Layer, ...]) -> int:
    """The paper's F(i) = (F(i+1) - 1) * stride + kernel, from one output cell down."""
    field = 1
    for layer in reversed(layers):
        if isinstance(layer, Conv):
            field = (field - 1) * layer.stride + layer.kernel
        elif isinstance(layer, Pool):
            field = (field - 1) * layer.stride + layer.window
    return field


@pytest.mark.parametrize("name", MODELS)
def test_receptive_fields_equal_the_top_down_formula(name: str) -> None:
    layers = tuple(abstract(name).layers)
    rows = receptive_field(layers)
    assert len(rows) == len(layers)
    for i, row in enumerate(rows):
        assert row.receptive_field == top_down(layers[: i + 1]), row.layer


def test_rows_of_layers_by_hand() -> None:
    rows = receptive_field(
        (
            Conv("a", 8, kernel=5, stride=2, padding=1),
            Relu("b"),
            MaxPool("c", window=3, stride=2, ceil_mode=True),
            AveragePool("d", window=2, stride=3, ceil_mode=False),
        ),
        (20, 31),
        in_channels=2,
    )
    table = [(r.layer, r.kernel, r.stride, r.jump, r.receptive_field) for r in rows]
    assert table == [("a", 5, 2, 2, 5), ("b", 1, 1, 2, 5), ("c", 3, 2, 4, 9),
                     ("d", 2, 3, 12, 13)]  # fmt: skip
    assert [row.start for row in rows] == [-1, -1, -1, -1]
    assert [row.output for row in rows] == [
        (9, 15, 8),
        (9, 15, 8),
        (4, 7, 8),
        (1, 2, 8),
    ]
    assert [row.weights for row in rows] == [5 * 5 * 2 * 8, 0, 0, 0]


# --- what can be asked ---


def test_fields_do_not_depend_on_the_image_size() -> None:
    geometry = [
        [(r.kernel, r.stride, r.jump, r.receptive_field, r.start) for r in rows]
        for rows in (receptive_field("vgg16"), receptive_field("vgg16", (300, 512)))
    ]
    assert geometry[0] == geometry[1]


def test_a_model_measures_as_its_name() -> None:
    model = abstract("vgg13_bn")
    assert receptive_field(model, 256) == receptive_field("vgg13_bn", 256)
    assert receptive_field(model.layers, 256) == receptive_field(model, 256)


def test_options_reach_the_model() -> None:
    small = summary("vgg11", 32, fc_kernel=1, fc_features=512, num_classes=10)
    assert by_name(small)["fc6"].weights == 512 * 512
    assert small.layers[-1].output == (1, 1, 10)
    gray = summary("nin_tutorial", in_channels=1)
    assert gray.layers[0].weights == 11 * 11 * 96
    backbone = summary("vgg16", num_classes=None)
    assert backbone.layers[-1].layer == "pool5"


def test_memory_follows_the_dtype() -> None:
    full, half = summary("vgg11"), summary("vgg11", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.activation_bytes * 2 == full.activation_bytes
    assert half.parameter_bytes == full.parameter_bytes


def test_errors_name_what_fits() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*'vgg16'"):
        summary("vgg-16")
    with pytest.raises(ValueError, match=r"no option 'num_clases'.*'num_classes'"):
        summary("vgg16", num_clases=10)
    with pytest.raises(ValueError, match="pass the model's name"):
        summary(abstract("vgg11"), num_classes=10)
    with pytest.raises(ValueError, match="in_channels and dtype, got width"):
        summary(abstract("vgg11").layers, width=0.5)
    with pytest.raises(ValueError, match=r"a side or \(height, width\), got \(300,\)"):
        summary("vgg16", (300,))
    with pytest.raises(TypeError, match="no rule"):
        summary((Layer("mystery"),))


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_narrow_and_complete(name: str) -> None:
    measured = summary(name, 512)
    text = str(measured)
    assert max(map(len, text.splitlines())) <= 100
    listed = [line.split()[0] for line in text.splitlines() if line]
    for row in measured.layers:
        assert (row.layer in listed) == (row.parameters > 0 or row.activations > 0)
    (total,) = (line for line in text.splitlines() if line.startswith("total"))
    assert f"{measured.parameters:,}" in total
    assert f"{measured.multiply_adds:,}" in total


def test_a_line_of_the_table() -> None:
    (line,) = (x for x in str(summary("vgg16")).splitlines() if x.startswith("conv3_3"))
    assert line.split() == ["conv3_3", "3x3", "1", "4", "40", "56x56x256", "590,080",
                            "802,816", "3.06", "1,849,688,064"]  # fmt: skip


def test_dict_survives_json() -> None:
    measured = summary("vgg11_bn", (224, 256))
    found = json.loads(json.dumps(measured.to_dict()))
    assert found["image"] == [224, 256, 3]
    assert len(found["layers"]) == len(measured.layers)
    assert found["layers"][0]["parameters"] == 1_792
    for total in ("parameters", "activations", "activation_bytes", "multiply_adds"):
        assert found["total"][total] == sum(row[total] for row in found["layers"])

"""ONNX files have the networks' answers in ONNX Runtime."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

from tests.models import drawn
from vgg_jax.export import Program, onnx_file, write_onnx
from vgg_jax.models import MODELS, ConvNet
from vgg_jax.models.layers import LocalResponseNorm, MaxPool
from vgg_jax.preprocessing import Normalization

CLASSES = 5
NORMALIZATION = Normalization(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))


def network(name: str, **options: Any) -> ConvNet:
    """A narrow network of the papers, whose layers are all alive."""
    if name.startswith("vgg"):
        options = {"fc_features": 1024, "fc_kernel": 1, **options}
    defaults = {"num_classes": CLASSES, "width": 1 / 16}
    model: ConvNet = nnx.merge(*drawn.network(name, **defaults | options))
    return model


@pytest.fixture(scope="module")
def model() -> ConvNet:
    return network("vgg11_lrn", fc_kernel=2)


def answer(path: Path, images: np.ndarray) -> np.ndarray:
    """The only output, channels last, of images with channels last."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (described,) = session.get_inputs()
    if described.shape[-1] != images.shape[-1]:
        images = images.transpose(0, 3, 1, 2)
    (found,) = session.run(None, {described.name: images})
    return found if found.ndim == 2 else found.transpose(0, 2, 3, 1)


def assert_same(got: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape and got.dtype == np.float32
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("name", MODELS)
def test_every_row_of_every_network_is_the_same(name: str, tmp_path: Path) -> None:
    """All maps are compared under their rows' names, on images of an odd size."""
    options = {"fc_kernel": 2} if name == "vgg16_c" else {}
    graphdef, params = drawn.network(
        name,
        num_classes=CLASSES,
        width=1 / 16,
        **({"fc_features": 1024, "fc_kernel": 1, **options} if name[0] == "v" else {}),
    )
    model: ConvNet = nnx.merge(graphdef, params)
    path = tmp_path / "network.onnx"
    write_onnx(Program(model=model, output="scores"), path, batch_size=None)
    written = onnx.load(path)
    names = [row.name for row in model.layers]
    for row in names:  # each row's map becomes an output as well
        written.graph.output.append(onnx.ValueInfoProto(name=row))
    session = onnxruntime.InferenceSession(
        written.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = drawn.images(2, 71, 98, 3)
    outputs = session.run([*names, "scores"], {"images": images.transpose(0, 3, 1, 2)})
    expected = drawn.answers(graphdef, params, images)
    del expected["score_map"]
    found = [
        array if array.ndim == 2 else array.transpose(0, 2, 3, 1) for array in outputs
    ]
    drawn.assert_same(dict(zip([*names, "logits"], found, strict=True)), expected)
    drawn.assert_relus_clip(
        {name: array for name, array in expected.items() if name != "logits"}
    )


@pytest.mark.parametrize("size", [(32, 32), (28, 61), (33, 47)])
@pytest.mark.parametrize("name", ["vgg11", "nin_cifar"])
def test_pools_that_round_up_do_so_at_every_size(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    model = network(name, **({"ceil_mode": True} if name == "vgg11" else {}))
    write_onnx(Program(model=model, output="score_map"), str(tmp_path / "map.onnx"))
    images = drawn.images(1, *size, 3)
    assert_same(answer(tmp_path / "map.onnx", images), model.score_map(images))


@pytest.mark.parametrize("output", ["scores", "posteriors", "score_map", "pool5"])
def test_the_output_can_be_chosen(output: str, model: ConvNet, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_onnx(Program(model=model, output=output), path)
    images = drawn.images(1, 64, 96, 3)
    maps = model.features(images, ("pool5",))["pool5"]
    logits = np.asarray(model(images))
    exponentials = np.exp(logits - logits.max())
    expected = {
        "scores": logits,
        "posteriors": exponentials / exponentials.sum(),
        "score_map": model.score_map(images),
        "pool5": maps,
    }
    assert_same(answer(path, images), expected[output])
    written = onnx.load(path)
    (described,) = written.graph.output
    assert described.name == output
    constants = {constant.name for constant in written.graph.initializer}
    assert ("fc8.kernel" in constants) == (output != "pool5")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_can_be_normalized_inside(
    dtype: str, model: ConvNet, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 70, 64, 3)).astype(dtype)
    program = Program(model=model, input=dtype, normalization=NORMALIZATION)
    write_onnx(program, tmp_path / "network.onnx")
    expected = model(NORMALIZATION(pixels))
    assert_same(answer(tmp_path / "network.onnx", pixels), expected)
    # It matters what is subtracted and divided by.
    assert np.abs(expected - model(pixels.astype(np.float32) / 255)).max() > 1e-3


def test_sizes_are_fixed_or_free(model: ConvNet, tmp_path: Path) -> None:
    program = Program(model=model, output="score_map")
    shapes = {}
    for name, sizes in {
        "free": {"batch_size": None},
        "default": {},
        "fixed": {"batch_size": 3, "image_size": (64, 96)},
    }.items():
        path = tmp_path / f"{name}.onnx"
        write_onnx(program, path, **sizes)  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(path)
        shapes[name] = session.get_inputs()[0].shape, session.get_outputs()[0].shape
        images = drawn.images(2 if name == "free" else 3, 64, 96, 3)
        if name == "default":
            with pytest.raises(Exception, match="Got: 3 Expected: 1"):
                answer(path, images)
        else:
            assert_same(answer(path, images), model.score_map(images))
    assert shapes == {
        "free": (["N", 3, "H", "W"], ["N", CLASSES, "h", "w"]),
        "default": ([1, 3, "H", "W"], [1, CLASSES, "h", "w"]),
        "fixed": ([3, 3, 64, 96], [3, CLASSES, 1, 2]),
    }


def test_a_backbone_and_gray_images(tmp_path: Path) -> None:
    model = network("nin_cifar", num_classes=None, in_channels=1)
    write_onnx(Program(model=model, output="pool2"), tmp_path / "network.onnx")
    images = drawn.images(1, 30, 41, 1)
    assert_same(answer(tmp_path / "network.onnx", images), model(images))
    with pytest.raises(ValueError, match="such as 'pool2', got 'scores'"):
        Program(model=model)


def test_the_file_says_what_it_is(model: ConvNet, tmp_path: Path) -> None:
    program = Program(
        model=model,
        normalization=NORMALIZATION,
        class_names=tuple("abcde"),
        facts={"lineage": "torchvision", "license": None, "crop": 64},
    )
    path = tmp_path / "network.onnx"
    write_onnx(program, path)
    written = onnx.load(path)
    props = {prop.key: prop.value for prop in written.metadata_props}
    assert props["lineage"] == "torchvision" and "license" not in props
    assert json.loads(props["class_names"]) == list("abcde")
    assert json.loads(props["normalization"])["std"] == list(NORMALIZATION.std)
    assert (props["input"], props["output"]) == ("normalized", "scores")
    assert props["smallest_image"] == "64" and props["channels"] == "RGB"
    assert props.keys() >= {"vgg_jax", "jax"}
    assert written.opset_import[0].version == onnx_file.OPSET
    onnx.checker.check_model(written, full_check=True)


def test_large_weights_are_beside_the_file(
    model: ConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "EMBEDDED", 1000)
    path = tmp_path / "large.onnx"
    write_onnx(Program(model=model), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "large.onnx",
        "large.onnx.data",
    ]
    weights = sum(array.nbytes for array in Program(model=model).weights().values())
    assert (
        path.stat().st_size
        < weights / 2
        < (tmp_path / "large.onnx.data").stat().st_size
    )
    images = drawn.images(1, 64, 64, 3)
    assert_same(answer(path, images), model(images))
    path.unlink()
    with pytest.raises(FileExistsError, match=r"large\.onnx\.data exists already"):
        write_onnx(Program(model=model), path)


def test_nothing_is_overwritten_or_left_half_done(
    model: ConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already: remove it"):
        write_onnx(Program(model=model), path)
    assert path.read_text() == "mine"
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such folder; make it first"):
        write_onnx(Program(model=model), tmp_path / "none" / "network.onnx")
    monkeypatch.setattr(onnx_file, "OPSET", 0)  # refused by the checker
    for embedded in (onnx_file.EMBEDDED, 1000):
        monkeypatch.setattr(onnx_file, "EMBEDDED", embedded)
        with pytest.raises(ValueError, match="onnx refuses what was written"):
            write_onnx(Program(model=model), path)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"output": "scoremap"}, {}, "unknown output 'scoremap': did you mean 'score_"),
        ({"input": "uint"}, {}, "unknown input 'uint': did you mean 'uint8'"),
        ({"input": "uint8"}, {}, "input='uint8' needs a normalization"),
        (
            {"normalization": Normalization((1.0,), (1.0,))},
            {},
            "expected 3 values of mean and of std, one a channel, got 1",
        ),
        ({"class_names": ("a",)}, {}, "expected the names of 5 classes, got 1"),
        ({}, {"batch_size": 0}, "expected batches of 1 image or more, got 0"),
        ({}, {"image_size": (64, 31)}, "images of at least 64x64 pixels, got 64x31"),
    ],
)
def test_mistakes_are_named(
    options: dict[str, Any],
    sizes: dict[str, Any],
    message: str,
    model: ConvNet,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        write_onnx(Program(model=model, **options), tmp_path / "network.onnx", **sizes)
    assert not list(tmp_path.iterdir())


def test_rows_that_onnx_does_not_have_are_refused(
    model: ConvNet, tmp_path: Path
) -> None:
    def export_with(index: int, row: Any) -> None:
        layers = (*model.layers[:index], row, *model.layers[index + 1 :])
        other: ConvNet = nnx.clone(model)
        other.layers = layers
        write_onnx(Program(model=other, output=row.name), tmp_path / "network.onnx")

    (index,) = (
        i for i, row in enumerate(model.layers) if isinstance(row, LocalResponseNorm)
    )
    with pytest.raises(ValueError, match=r"expected an odd size of norm1, .* got 4"):
        export_with(index, LocalResponseNorm("norm1", 4, 1e-4, 0.75, 2.0))
    with pytest.raises(ValueError, match=r"pool1: .* stride 3 and window 2"):
        export_with(index + 1, MaxPool("pool1", 2, 3, ceil_mode=True))


def test_without_onnx_the_error_says_what_to_type(
    model: ConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install -r requirements-export\.txt"):
        write_onnx(Program(model=model), tmp_path / "network.onnx")


@pytest.mark.slow
def test_the_whole_vgg16(tmp_path: Path) -> None:
    """fc6 of 7x7 at the training size, and densely beyond it."""
    model: ConvNet = nnx.merge(*drawn.network("vgg16"))
    write_onnx(Program(model=model, output="score_map"), tmp_path / "vgg16.onnx")
    assert (tmp_path / "vgg16.onnx").stat().st_size > 138_357_544 * 4
    for size in ((224, 224), (256, 320)):
        images = drawn.images(1, *size, 3)
        assert_same(answer(tmp_path / "vgg16.onnx", images), model.score_map(images))

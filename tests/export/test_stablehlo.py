"""StableHLO that JAX runs without this library, and the examples of docs/export.md."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from flax import nnx

from tests.models import drawn
from vgg_jax.export import Program, stablehlo, write_stablehlo
from vgg_jax.export.stablehlo import lower
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
NORMALIZATION = Normalization(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))

# The page's own example of running a program, with what it may not need out of reach.
BLOCKED = """
import sys
for name in ("vgg_jax", "flax", "optax", "onnx"):
    sys.modules[name] = None
"""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def model() -> ConvNet:
    options = {"num_classes": 5, "width": 1 / 16}
    model: ConvNet = nnx.merge(*drawn.network("nin_cifar", **options))
    return model


def run_folder(folder: Path, images: np.ndarray) -> np.ndarray:
    serialized = (folder / stablehlo.PROGRAM).read_bytes()
    program = jax.export.deserialize(bytearray(serialized))
    weights = dict(np.load(folder / stablehlo.WEIGHTS))
    return np.asarray(jax.jit(program.call)(weights, images))


def test_the_examples_run_and_the_program_does_so_without_this_library(
    tmp_path: Path,
) -> None:
    write, run, with_onnx = examples()
    here = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    path = os.pathsep.join(map(str, (PAGE.parents[1],)))
    environment = os.environ | {"PYTHONPATH": path}
    code = (
        write
        + with_onnx
        + (
            "assert scores.shape == (1, 10) and facts['input'] == 'uint8'\n"
            "scores = model(pixels(np.zeros((2, 64, 96, 3)))); np.save('ours', scores)"
        )
    )
    subprocess.run([sys.executable, "-c", code], env=environment, **here)  # type: ignore[call-overload]
    code = BLOCKED + run + "np.save('theirs', scores)"
    subprocess.run([sys.executable, "-c", code], env=environment, **here)  # type: ignore[call-overload]
    ours, theirs = (np.load(tmp_path / f"{name}.npy") for name in ("ours", "theirs"))
    assert theirs.shape == (2, 10)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("output", ["scores", "posteriors", "score_map", "pool1"])
def test_it_has_the_networks_answers_at_any_size(
    output: str, model: ConvNet, tmp_path: Path
) -> None:
    program = Program(
        model=model, output=output, input="float32", normalization=NORMALIZATION
    )
    write_stablehlo(program, str(tmp_path))
    for size in ((2, 32, 32), (1, 29, 46)):
        pixels = 60 * drawn.images(*size, 3) + 110
        images = NORMALIZATION(pixels)
        expected = {
            "scores": lambda images: model(images),
            "posteriors": lambda images: jax.nn.softmax(model(images)),
            "score_map": lambda images: model.score_map(images),
            "pool1": lambda images: model.features(images, ("pool1",))["pool1"],
        }[output](images)
        found = run_folder(tmp_path, pixels)
        assert found.shape == expected.shape and found.dtype == np.float32
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)
        if output == "pool1":
            weights = np.load(tmp_path / stablehlo.WEIGHTS).files
            assert not [name for name in weights if name.startswith("conv2")]


def test_metadata_and_platforms(model: ConvNet, tmp_path: Path) -> None:
    program = Program(model=model, class_names=tuple("abcde"), facts={"step": 7})
    write_stablehlo(program, tmp_path / "a" / "network")
    metadata = json.loads((tmp_path / "a" / "network" / "metadata.json").read_text())
    assert metadata["class_names"] == list("abcde") and metadata["step"] == 7
    assert metadata["platforms"] == ["cpu", "cuda", "tpu"]
    assert metadata["layout"] == "NHWC" and metadata["jax"] == jax.__version__
    with pytest.raises(FileExistsError, match="stablehlo exists already: remove it"):
        write_stablehlo(program, tmp_path / "a" / "network")
    with pytest.raises(NotADirectoryError):
        write_stablehlo(program, tmp_path / "a" / "network" / "metadata.json")


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg13_bn", "nin_imagenet"])
def test_a_program_is_of_plain_operations_alone(name: str) -> None:
    """It has no form for CPU alone, and no call that only this library knows."""
    model: ConvNet = nnx.merge(*drawn.network(name, num_classes=5, width=1 / 16))
    program = Program(model=model, input="uint8", normalization=NORMALIZATION)
    exported = lower(program, program.weights())
    module = exported.mlir_module()
    # JAX takes these comparisons of sides out when it calls the program.
    assert set(re.findall(r"custom_call @([\w.]+)", module)) == {"shape_assertion"}
    assert "stablehlo.convolution" in module
    assert "dot_general" not in module  # this library's forms for CPU are products
    assert (
        "dense<" not in module
        or max(map(len, re.findall(r"dense<(.*?)>", module))) < 200
    )  # weights are not in it
    (scores,) = exported.out_avals
    assert scores.shape[1] == 5
    small = program.smallest_image - 1
    with pytest.raises(ValueError, match=rf"h >= {program.smallest_image}"):
        jax.eval_shape(
            exported.call,
            program.weights(),
            jax.ShapeDtypeStruct((1, small, 300, 3), np.uint8),
        )


@pytest.mark.parametrize("name", ["program.stablehlo", "weights.npz", "metadata.json"])
def test_no_file_of_another_export_is_overwritten(
    name: str, model: ConvNet, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} exists already: remove it"):
        write_stablehlo(Program(model=model), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

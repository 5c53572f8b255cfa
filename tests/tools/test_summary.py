"""The command python -m vgg_jax.tools.summary, and section 2.3's stacks."""

import json
import subprocess
import sys

import pytest

from vgg_jax.models import MODELS
from vgg_jax.models.measure import summary
from vgg_jax.tools.summary import compare_stacks, format_stacks, main

Capture = pytest.CaptureFixture[str]


def test_a_table(capsys: Capture) -> None:
    assert main(["vgg16", "--size", "384"]) == 0
    assert capsys.readouterr().out == f"{summary('vgg16', 384)}\n"


def test_options(capsys: Capture) -> None:
    command = (
        "vgg11 --size 32x64 --fc_kernel 1 --fc_features 512 --num_classes 10 "
        "--in_channels 1 --width 0.5 --dtype bfloat16 --ceil_mode --json"
    )
    assert main(command.split()) == 0
    expected = summary(
        "vgg11",
        (32, 64),
        fc_kernel=1,
        fc_features=512,
        num_classes=10,
        in_channels=1,
        width=0.5,
        dtype="bfloat16",
        ceil_mode=True,
    )
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(expected.to_dict()))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("vgg11 --lrn krizhevsky", {"lrn": "krizhevsky"}),
        ("vgg11 --batch_norm", {"batch_norm": True}),
        ("vgg11_bn --no-batch_norm", {"batch_norm": False}),
        ("nin_tutorial --no-final_relu", {"final_relu": False}),
    ],
)
def test_options_that_some_names_set(
    command: str, expected: dict[str, object], capsys: Capture
) -> None:
    assert main([*command.split(), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    name, *_ = command.split()
    assert table == json.loads(json.dumps(summary(name, 224, **expected).to_dict()))
    assert table != json.loads(json.dumps(summary(name, 224).to_dict()))


def test_compare(capsys: Capture) -> None:
    assert main(["--compare", "--channels", "64"]) == 0
    stacks = format_stacks(compare_stacks(64))
    assert capsys.readouterr().out == f"{stacks}\n"
    assert main(["nin_cifar", "--size", "32", "--compare"]) == 0
    both = capsys.readouterr().out
    assert str(summary("nin_cifar", 32)) in both
    assert format_stacks(compare_stacks()) in both
    assert main(["--compare", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stack["weights_per_c2"] for stack in found["stacks"]] == [18, 25, 27, 49]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vgg16 --size 100", "at least 224x224 pixels, got 100x100"),
    ],
)
def test_errors_are_one_line(command: str, message: str, capsys: Capture) -> None:
    assert main(command.split()) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "say which network: " + ", ".join(MODELS)),
        ("vgg16 --size big", "expected pixels, as 384 or 384x512, got 'big'"),
        ("vgg16 --size 384x", "got '384x'"),
        ("vgg16 --num_classes 0", "expected num_classes in [1, 1048576], got 0"),
        ("vgg16 --num_classes many", "expected a whole number, got 'many'"),
        ("vgg16 --width=0", "expected width in (0, 100], got 0.0"),
        ("vgg61", "unknown name 'vgg61': did you mean 'vgg19' or 'vgg16'"),
        ("VGG16", "unknown name 'VGG16': did you mean 'vgg16'?"),
        ("nin_cifar --head paper", "nin_cifar has no option 'head'"),
        ("vgg16 --final_relu", "vgg16 has no option 'final_relu'"),
        ("vgg16 --head papper", "unknown head 'papper': did you mean 'paper'?"),
        ("vgg16 --lrn cafe", "unknown lrn 'cafe': did you mean 'caffe'?"),
        ("vgg16 --dtype float33", "'float33': did you mean 'float32'"),
        ("vgg16 --dtype foo", "unknown dtype 'foo': known are float32, bfloat16"),
    ],
)
def test_usage_errors(command: str, message: str, capsys: Capture) -> None:
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_the_module_runs_on_light_dependencies() -> None:
    code = (
        "import runpy, sys\n"
        "heavy = ('tensorflow_datasets', 'grain', 'orbax', 'matplotlib', 'cv2')\n"
        "for name in heavy: sys.modules[name] = None\n"  # importing one now fails
        "sys.argv = ['summary', 'vgg16', '--size', '256']\n"
        "runpy.run_module('vgg_jax.tools.summary', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("vgg16, one image of 256x256x3")


def test_the_papers_comparison() -> None:
    two3, one5, three3, one7 = compare_stacks(channels=64, image_size=10)
    assert two3.receptive_field == one5.receptive_field == 5
    assert three3.receptive_field == one7.receptive_field == 7
    c2 = 64 * 64
    stacks = (two3, one5, three3, one7)
    assert [s.weights for s in stacks] == [18 * c2, 25 * c2, 27 * c2, 49 * c2]
    assert [s.weights_per_c2 for s in stacks] == [18, 25, 27, 49]
    assert [s.convolutions for s in stacks] == [2, 1, 3, 1]
    assert [s.multiply_adds for s in stacks] == [100 * s.weights for s in stacks]
    assert [s.activations for s in stacks] == [n * 100 * 64 for n in (2, 1, 3, 1)]
    assert three3.activation_bytes == 4 * three3.activations


def test_the_table() -> None:
    lines = format_stacks(compare_stacks(channels=512, image_size=14)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[5:7] for line in lines[2:]] == [
        ["18", "C^2"], ["25", "C^2"], ["27", "C^2"], ["49", "C^2"]]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"image_size": 0}])
def test_nothing_to_compare(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        compare_stacks(**wrong)

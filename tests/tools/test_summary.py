"""The command line: python -m vgg_jax.tools.summary."""

import json
import subprocess
import sys

import pytest

from vgg_jax.models import MODELS
from vgg_jax.models.measure import summary
from vgg_jax.tools.stacks import compare_stacks, format_stacks
from vgg_jax.tools.summary import main

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
        ("vgg61", "unknown model 'vgg61': did you mean 'vgg19' or 'vgg16'"),
        ("vgg16 --size 100", "at least 224x224 pixels, got 100x100"),
        ("nin_cifar --head paper", "nin_cifar has no option 'head'"),
        ("vgg16 --head papper", "did you mean 'paper'?"),
        ("vgg16 --dtype float33", "float33"),
    ],
)
def test_errors_are_one_line(command: str, message: str, capsys: Capture) -> None:
    assert main(command.split()) == 2
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
        ("vgg16 --num_classes 0", "a whole number of at least 1, got '0'"),
    ],
)
def test_usage_errors(command: str, message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_runs_on_light_dependencies() -> None:
    code = (
        "import runpy, sys\n"
        "heavy = ('tensorflow_datasets', 'grain', 'orbax', 'matplotlib', 'cv2')\n"
        "for name in heavy: sys.modules[name] = None\n"  # importing one now fails
        "sys.argv = ['vgg_jax.tools.summary', 'vgg16', '--size', '256']\n"
        "runpy.run_module('vgg_jax.tools.summary', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("vgg16, one image of 256x256x3")

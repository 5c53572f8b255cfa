"""The command line: python -m vgg_jax.tools.gpu_check.

`data/gpu_scan.txt` is the gradient of a scan over 3 batches of 64 images of 32x32x8, by
a convolution to 64 channels, ReLU, pool and fully-connected layer to 128 features in
bfloat16, as XLA of jaxlib 0.12.0.1 compiled it for two H200.
"""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgg_jax.tools.gpu_check import CARDS, Report, find_cards, main
from vgg_jax.tools.hlo import Collective, Kernel, kernels, program_costs
from vgg_jax.tools.programs import Memory

ROOT = Path(__file__).parents[2]
GIB = 2**30
SCAN = (Path(__file__).parent / "data" / "gpu_scan.txt").read_text()


def has_compiler() -> bool:
    names = (d.metadata["Name"] for d in importlib.metadata.distributions())
    return any(str(name).startswith("jax-cuda") for name in names)


needs_compiler = pytest.mark.skipif(
    not has_compiler(),
    reason="no compiler for GPUs: pip install -r requirements-cuda.txt",
)


def test_kernels_of_a_program_with_a_loop() -> None:
    found = kernels(SCAN)
    by_source = {kernel.source: kernel for kernel in found}
    conv = by_source["eval_jaxpr/conv1_1/conv_general_dilated"]
    # Of 32 images a card: those, the kernel and its bias, and the map, three times.
    moved = 2 * (32 * 32 * 32 * 8 + 3 * 3 * 8 * 64 + 64 + 32 * 32 * 32 * 64)
    assert conv.is_product and conv.bytes == 3 * moved
    pool = by_source["loop_convert_fusion"]
    assert not pool.is_product and pool.result == "bf16[32,16,16,64]"
    assert pool.bytes == 3 * 2 * 32 * (32 * 32 + 16 * 16) * 64
    products = [kernel.source for kernel in found if kernel.is_product]
    assert products == [
        "eval_jaxpr/conv1_1/conv_general_dilated",
        "eval_jaxpr/fc6/dot_general",
        "eval_jaxpr/fc6 (gradient)",
    ]
    assert program_costs(SCAN).collectives == (
        Collective("all-reduce", 1, 2 * 16 * 16 * 64 * 128),
    )


# A slice of an array, a fusion that slices, one that writes a row of an array in place,
# a product that no library computes, an asynchronous sum over cards, copy and fusion,
# and the branches of a condition.
SMALL = """
%fused_slice (p0: f32[1000,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[1000,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %cast = f32[1000,64]{1,0} bitcast(%p0)
  ROOT %cut = f32[1,64]{1,0} dynamic-slice(%cast, %p1, %p1), dynamic_slice_sizes={1,64}
}

%fused_update (p0.1: f32[1000,64], p1.1: f32[1,64], p2.1: s32[]) -> f32[1000,64] {
  %p0.1 = f32[1000,64]{1,0} parameter(0)
  %p1.1 = f32[1,64]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  ROOT %put = f32[1000,64]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %p2.1)
}

%async (q0: f32[1000,64], q1: s32[]) -> f32[1,64] {
  %q0 = f32[1000,64]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  ROOT %later = f32[1,64]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%fused_slice
}

%yes (y: f32[10,10]) -> f32[10,10] {
  %y = f32[10,10]{1,0} parameter(0)
  ROOT %sine = f32[10,10]{1,0} sine(%y)
}

%no (z: f32[10,10]) -> f32[10,10] {
  %z = f32[10,10]{1,0} parameter(0)
  ROOT %cosine = f32[10,10]{1,0} cosine(%z)
}

ENTRY %main (a: f32[1000,64], i: s32[]) -> f32[1000,64] {
  %a = f32[1000,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %rows = f32[10,64]{1,0} slice(%a), slice={[0:10], [0:64]}
  %row = f32[1,64]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused_slice
  %dot = f32[10,10]{1,0} dot(%rows, %rows), lhs_contracting_dims={1}
  %gemm = f32[10,10]{1,0} custom-call(%dot, %dot), custom_call_target="__cublas$gemm"
  %sent = (f32[10,10], f32[10,10]) all-reduce-start(%gemm), to_apply=%add
  %sum = f32[10,10]{1,0} all-reduce-done(%sent)
  %copying = (f32[10,10], f32[10,10], u32[]) copies-start(%sum)
  %copied = f32[10,10]{1,0} copies-done(%copying)
  %begun = ((f32[1000,64], s32[]), f32[1,64], u32[]) fusion-start(%a, %i), calls=%async
  %ended = f32[1,64]{1,0} fusion-done(%begun)
  %if = f32[10] conditional(%p, %sum), true_computation=%yes, false_computation=%no
  ROOT %written = f32[1000,64]{1,0} fusion(%a, %row, %i), calls=%fused_update
}
"""


def test_kernels_that_touch_a_part_of_an_array_move_that_part() -> None:
    found = {k.source: (k.bytes, k.is_product) for k in kernels(SMALL)}
    assert found == {
        "rows": (2 * 4 * 10 * 64, False),
        "row": (2 * 4 * 64 + 4, False),
        "dot": (4 * (2 * 10 * 64 + 100), True),
        "gemm": (4 * 300, True),
        "copying": (4 * 200 + 4, False),
        "begun": (2 * 4 * 64 + 4, False),
        "sine": (4 * 200, False),
        "cosine": (4 * 200, False),
        "written": (2 * 4 * 64 + 4, False),
    }


def test_a_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="found no ENTRY"):
        kernels("")


def report(**changes: object) -> Report:
    """A step of two H200: 1 ms of arithmetic, 0.5 ms of other kernels."""
    found = Report(
        program="train_step",
        card=CARDS["h200"],
        cards=2,
        batch_size=128,
        settings="bfloat16",
        dtype="bfloat16",
        model_flops=2 * 989.5e12 * 1e-3,
        memory=Memory(arguments=GIB, outputs=0, temporaries=4 * GIB, code=0),
        kernels=(
            Kernel("conv1_1/conv_general_dilated", "bf16[64,224,224,64]", True, 10**9),
            Kernel("relu1_1/max", "bf16[64,224,224,64]", False, 1_400_000_000),
            Kernel("pool1/select_n", "bf16[64,112,112,64]", False, 10**9),
        ),
        collectives=(Collective("all-reduce", 3, 80_000_000),),
        advice=("--config.remat=True",),
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_what_the_bytes_imply() -> None:
    found = report()
    assert found.product_seconds == pytest.approx(1e-3)
    assert found.other_seconds == pytest.approx(0.5e-3)
    assert found.utilization == pytest.approx(1 / 1.5)
    # TF32 has half of the peak.
    single = report(dtype="float32")
    assert single.product_seconds == pytest.approx(2e-3)
    assert single.utilization == pytest.approx(2 / 2.5)
    # Little arithmetic, and 1 GB to move.
    assert report(model_flops=1.0).product_seconds == pytest.approx(1 / 4800)


def test_a_report() -> None:
    found = report()
    assert found.fits
    text = str(found)
    for words in (
        "train_step on 2 x NVIDIA H200, 64 images a card; bfloat16",
        "in 1 kernels, at least 1.0 ms",
        "in 2 kernels, at least 0.5 ms",
        "67%  at most",
        "80 MB  in 3",
    ):
        assert words in text
    assert text.index("relu1_1/max") < text.index("pool1/select_n")
    assert "conv1_1" not in text and "does not fit" not in text
    values = json.loads(json.dumps(found.to_dict()))
    assert values["other_bytes"] == 2_400_000_000 and values["kernel_count"] == 3


def test_a_program_that_does_not_fit() -> None:
    for memory, fits in ((6.5, False), (6.7, True)):  # JAX takes three quarters
        card = dataclasses.replace(CARDS["h200"], memory=int(memory * GIB))
        assert report(card=card).fits == fits
    found = report(card=dataclasses.replace(CARDS["h200"], memory=4 * GIB))
    assert str(found).endswith("make it smaller:\n  --config.remat=True")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("h1000:8", "unknown card 'h1000': did you mean 'h100'"),
        ("h100:0", "expected cards such as h100:8, got 'h100:0'"),
        ("h100:", "expected cards such as h100:8, got 'h100:'"),
        ("h100:٣", "expected cards such as h100:8"),
        ("a100:2x4", "expected cards such as a100:8"),
    ],
)
def test_the_command_refuses_cards(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--config={ROOT}/configs/vgg16.py", f"--cards=h200,{words}"]) == 2
    assert message in capsys.readouterr().err


def test_cards_and_their_number() -> None:
    assert find_cards("a100") == (CARDS["a100"], 1)
    assert find_cards("h200:8") == (CARDS["h200"], 8)


def test_the_libraries_are_those_that_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Installed:
        def __init__(self, name: str, version: str):
            self.metadata, self.version = {"Name": name}, version

    def distributions() -> Iterator[Installed]:
        yield Installed("nvidia-cudnn-frontend", "1.2.3")
        yield Installed("nvidia-cudnn-cu13", "9.28.1.4")
        yield Installed("nvidia-cuda-runtime", "13.5.37")

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    text = CARDS["h100"].describe()
    assert "dnn_version_info { major: 9 minor: 28 patch: 1 }" in text
    assert "runtime_version { major: 13 minor: 5 patch: 37 }" in text
    assert "core_count: 132" in text and "clock_rate_ghz: 1.98\n" in text


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(()))
    with pytest.raises(ImportError, match=r"pip install -r requirements-cuda\.txt"):
        CARDS["h100"].describe()


@needs_compiler
@pytest.mark.slow
def test_the_compiler_on_a_tiny_network(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vgg_jax.tools.gpu_check"),
            *("--config=configs/vgg11.py", "--config.model.width=0.0625"),
            *("--config.model.num_classes=10", "--config.model.fc_features=256"),
            *("--config.model.fc_kernel=1", "--config.data.crop=32"),
            *("--config.evaluation.scales=(64,)", "--config.accumulate_steps=4"),
            *("--cards=a100:2", f"--json={file}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    train, dense = json.loads(file.read_text())
    assert train["program"] == "train_step" and train["cards"] == 2
    assert [c["kind"] for c in train["collectives"]] == ["all-reduce"]
    assert train["kernel_count"] > dense["kernel_count"] > 10
    assert 0 < train["utilization"] < 1 and dense["collectives"] == []
    assert "train_step on 2 x NVIDIA A100-SXM4-80GB, 128 images a card" in done.stdout

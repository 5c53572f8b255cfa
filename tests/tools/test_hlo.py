"""Costs from the text of a compiled program.

`data/train_step.txt` has lines of VGG-16's training step, batch 256 in bfloat16 on
v5e:2x4, where two operands of `select-and-scatter` stand in for fusions;
`data/scan.txt` is `jax.lax.scan` over 6 products of 1024 x 1024 matrices. Both as
libtpu 0.0.42.1 wrote them.
"""

from pathlib import Path

import pytest

from vgg_jax.tools.hlo import Collective, Operation, program_costs, source_name

DATA = Path(__file__).parent / "data"


def read(name: str) -> str:
    return (DATA / name).read_text()


def test_operations_by_cycles_under_their_layers_names() -> None:
    found = program_costs(read("train_step.txt"))
    assert [(o.source, o.result, o.cycles) for o in found.operations] == [
        (
            "conv1_2/conv_general_dilated",
            "(bf16[32,224,224,64], bf16[32,224,224,64])",
            5761791,
        ),
        ("add", "(f32[7,7,512,4096], f32[7,7,512,4096], f32[])", 4227518),
        ("conv1_2/conv_general_dilated (gradient)", "bf16[3,3,64,64]", 3496343),
    ]
    assert found.cycles == 5761791 + 4227518 + 3496343


def test_bytes_of_collectives() -> None:
    weights = 2 * 7 * 7 * 512 * 4096
    (found,) = program_costs(read("train_step.txt")).collectives
    assert found == Collective("all-reduce", 2, weights + 4 * 4)


def test_what_has_no_estimate_is_named_if_it_is_large() -> None:
    (found,) = program_costs(read("train_step.txt")).without_estimate
    assert (found.opcode, found.count) == ("select-and-scatter", 1)
    assert program_costs(SHARDED).without_estimate == ()


def test_what_has_no_estimate_counts_its_memory_traffic() -> None:
    """It reads its input and its output's gradient, and writes its input's.

    64 channels fill half of a tile's 128 lanes, whose other half travels along.
    """
    (found,) = program_costs(read("train_step.txt")).without_estimate
    pixels = 2 * 32 * 224 * 224 + 32 * 112 * 112
    assert found.bytes == 2 * 128 * pixels + 2  # the zero that it starts from


def test_arrays_that_are_not_in_hbm_are_no_traffic() -> None:
    text = read("train_step.txt")
    result = "%select-and-scatter.9 = bf16[32,224,224,64]{3,0,2,1:T(8,128)(2,1)"
    assert result in text
    (found,) = program_costs(text.replace(result, result + "S(1)")).without_estimate
    (whole,) = program_costs(text).without_estimate
    assert whole.bytes - found.bytes == 2 * 128 * 32 * 224 * 224


def test_a_loop_counts_every_turn() -> None:
    found = program_costs(read("scan.txt"))
    assert found.operations == (
        Operation("convert.1", "bf16[6,1024,1024]", 189600, 1),
        Operation("dot_general", "f32[1024]", 6 * 21340, 6),
        Operation("convert.2", "bf16[1024,1024]", 31680, 1),
        Operation("add", "f32[1024]", 6 * 1832, 6),
    )
    assert found.unknown_loops == 0


@pytest.mark.parametrize(
    ("known", "unknown"),
    [("direction=LT", "direction=NE"), ("constant(6)", "parameter(1)")],
)
def test_a_loop_of_unknown_turns_counts_once_and_is_reported(
    known: str, unknown: str
) -> None:
    found = program_costs(read("scan.txt").replace(known, unknown))
    assert found.unknown_loops == 1
    assert found.cycles == 189600 + 21340 + 31680 + 1832


SHARDED = """HloModule made_by_hand

%scatter (p: f32[16,4]) -> f32[2,4] {
  %p = f32[16,4]{1,0} parameter(0)
  ROOT %reduce-scatter = f32[2,4]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

%fused (p: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %all-reduce = f32[8]{0} all-reduce(%p.1), to_apply=%add
}

ENTRY %main (a: f32[16,4]) -> f32[8] {
  %a = f32[16,4]{1,0} parameter(0)
  %start = ((f32[16,4]), f32[2,4], u32[]) async-start(%a), calls=%scatter
  %done = f32[2,4]{1,0} async-done(%start)
  %gather-start = (f32[2,4], f32[16,4]) all-gather-start(%done), dimensions={0}
  %gathered = f32[16,4]{1,0} all-gather-done(%gather-start)
  %sliced = f32[8]{0} slice(%gathered), slice={[0:1], [0:8]}
  ROOT %f = f32[8]{0} fusion(%sliced), kind=kCustom, calls=%fused
}
"""


def test_collectives_that_run_beside_others_or_inside_fusions_count_once() -> None:
    assert program_costs(SHARDED).collectives == (
        Collective("all-reduce", 1, 4 * 8),
        Collective("all-gather", 1, 4 * 16 * 4),
        Collective("reduce-scatter", 1, 4 * 16 * 4),
    )


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        (
            "jit(train_step)/jvp(conv1_1)/conv_general_dilated",
            "conv1_1/conv_general_dilated",
        ),
        (
            "jit(train_step)/transpose(jvp(fc6))/cond/branch_0_fun/transpose(jvp())/dot",
            "fc6/dot (gradient)",
        ),
        ("jit(step)/while/body/closed_call/jvp(pool1)/max", "pool1/max"),
        ("jit(step)/jvp(drop6)/jit(_bernoulli)/lt", "drop6/_bernoulli/lt"),
        ("jit(step)/add", "add"),
    ],
)
def test_source_names(op_name: str, expected: str) -> None:
    assert source_name(op_name) == expected


def test_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="found no ENTRY"):
        program_costs("HloModule empty")

"""Chips, and what a report says of hand-made numbers."""

import json

import pytest

from vgg_jax.tools.hlo import Collective, Costs, Operation, Unestimated
from vgg_jax.tools.tpu_report import CHIPS, Memory, Report, format_growth

GIB = 2**30


def report(*, topology: str = "v5e:2x4", temporaries: int = 3 * GIB) -> Report:
    """A step of 1.5e6 cycles: 1 ms on v5e."""
    return Report(
        program="train_step",
        topology=topology,
        chips=8,
        batch_size=256,
        settings="bfloat16, shard_fc",
        model_flops=8 * 197e12 * 1e-3 / 4,  # a quarter of what 8 chips do in 1 ms
        memory=Memory(
            arguments=2 * GIB, outputs=1024, temporaries=temporaries, code=GIB // 2
        ),
        costs=Costs(
            operations=(
                Operation("conv1_2/dot", "bf16[32,224,224,64]", 1_200_000, 1),
                Operation("fc6/dot (gradient)", "bf16[25088,4096]", 300_000, 2),
            ),
            # A ring of 8 sends 7/8 of the bytes, of a sum twice, at 200 GB/s one way.
            collectives=(
                Collective("all-reduce", 3, 80_000_000),
                Collective("all-gather", 1, 40_000_000),
            ),
            without_estimate=(
                Unestimated("select-and-scatter", 5, 409_500_000),  # 0.5 ms of v5e
            ),
            unknown_loops=0,
        ),
        flops=2.5e12,
        bytes_accessed=2e10,
        advice=("--config.remat=True", "--config.batch_size=128"),
    )


def test_what_the_cycles_imply() -> None:
    found = report()
    assert found.seconds == pytest.approx(1e-3)
    assert found.utilization == pytest.approx(0.25)
    assert found.communication_seconds == pytest.approx((2 * 80 + 40) * 7 / 8 / 200e3)
    assert found.traffic_seconds == pytest.approx(0.5e-3)
    assert found.utilization_with_traffic == pytest.approx(0.25 / 1.5)
    assert found.communication_share == pytest.approx(0.875 / 2.375)


def test_a_program_that_fits() -> None:
    found = report()
    assert found.fits
    text = str(found)
    for words in (
        "train_step on v5e:2x4: 8 chips, 32 images a chip; bfloat16, shard_fc",
        "5.500 GiB  of 16.000 GiB",
        "1.00 ms, at most 256,000 images/s on all chips",
        "25.0%",
        "80,000,000 bytes  in 3",
        "conv1_2/dot",
        "80.0%  bf16[32,224,224,64]",
        "16.7%  and 0.50 ms of memory traffic",
        "having no estimate: 5 select-and-scatter (410 MB)",
    ):
        assert words in text
    assert "fit" not in text


def test_a_program_that_does_not_fit_says_what_to_change() -> None:
    found = report(temporaries=14 * GIB)
    assert not found.fits
    assert str(found).endswith(
        "does not fit. What would make it smaller:\n"
        "  --config.remat=True\n  --config.batch_size=128"
    )
    assert report(topology="v6e:2x4", temporaries=14 * GIB).fits


def test_a_program_that_the_compiler_refuses() -> None:
    found = Report(
        program="dense",
        topology="v5e:2x4",
        chips=8,
        batch_size=64,
        settings="float32",
        model_flops=1.0,
        advice=("--config.model.dtype=bfloat16",),
        refusal="Used 20.00G of 15.75G hbm",
    )
    assert not found.fits
    assert "Used 20.00G of 15.75G hbm" in str(found)
    assert "--config.model.dtype=bfloat16" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["fits"] is False
    assert "too much" in format_growth([found])


def test_json_has_the_sums() -> None:
    found = json.loads(json.dumps(report().to_dict()))
    assert found["memory"]["needed"] == 5.5 * GIB + 1024
    assert found["costs"]["cycles"] == 1_500_000
    assert found["costs"]["collectives"][1]["bytes"] == 40_000_000
    assert found["utilization"] == pytest.approx(0.25)
    assert found["utilization_with_traffic"] == pytest.approx(0.25 / 1.5)


def test_growth_has_a_row_a_report() -> None:
    table = format_growth([report(), report(topology="v6e:2x4")])
    assert [line.split()[:3] for line in table.splitlines()[2:]] == [
        ["train_step", "v5e:2x4", "32"],
        ["train_step", "v6e:2x4", "32"],
    ]
    assert "120,000,000" in table


@pytest.mark.parametrize(
    ("kind", "products"), [("v4", 8), ("v5e", 4), ("v5p", 8), ("v6e", 16)]
)
def test_peak_is_what_the_matrix_units_do_at_the_clock(
    kind: str, products: int
) -> None:
    chip = CHIPS[kind]
    per_cycle = 2 * 128 * 128 * products
    assert chip.peak_flops / per_cycle == pytest.approx(chip.clock, rel=0.005)

"""Turns what the TPU compiler says of a program into numbers and a text of them."""

import dataclasses
from typing import Any

from vgg_jax.console import format_columns
from vgg_jax.memory import GIB
from vgg_jax.tools.hlo import Costs
from vgg_jax.tools.programs import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The figures of one kind of TPU chip.

    Args:
        hbm_bytes: its memory.
        hbm_bandwidth: the bandwidth of that memory, bytes/s.
        peak_flops: the most it computes in bfloat16, FLOP/s.
        clock: cycles/s, of the compiler's cycles.
        link_bandwidth: to the other chips over all links, bytes/s in both directions.
        options: keywords for `get_topology_desc` with which a device is a chip.
    """

    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    clock: float
    link_bandwidth: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# By the name before the colon of a topology. Memory, bandwidths and peaks are those of
# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e (read on 2026-11-24), whose GB
# of memory are 2^30 bytes. v4's links, six of 50 GB/s each way, are from its paper,
# arXiv:2304.01433. No page has the clock: it is the peak over what the matrix units do
# in a cycle, 2 x 128 x 128 FLOP each, with 8, 4 and 8 units in v4, v5e and v5p. By the
# compiler's estimate a product of 8192 x 8192 matrices then runs at 93, 88 and 90% of
# the peak. For v6e, two units of 256 x 256, that estimate is above the peak unless each
# does two such products a cycle; so its clock (70%).
CHIPS = {
    "v4": Chip(
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.2e12,
        peak_flops=275e12,
        clock=1.05e9,
        link_bandwidth=600e9,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        peak_flops=197e12,
        clock=1.5e9,
        link_bandwidth=400e9,
    ),
    "v5p": Chip(
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765e9,
        peak_flops=459e12,
        clock=1.75e9,
        link_bandwidth=1200e9,
    ),
    "v6e": Chip(
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1638e9,
        peak_flops=918e12,
        clock=1.75e9,
        link_bandwidth=800e9,
    ),
}


COSTLIEST = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one program costs on one topology; prints as a text.

    Args:
        program: the program's name.
        topology: chips and their arrangement, such as "v5e:2x4".
        chips: how many chips the topology has.
        batch_size: how many images all chips together take at once.
        settings: the settings on which the speed depends, "bfloat16, shard_fc".
        model_flops: FLOP of the convolutions of these images by their definition, on
            all chips: twice the multiply-adds, and twice that again for the gradients.
        memory: what the program takes of a chip; None where the compiler gave up.
        costs: what it costs in cycles; None where the compiler gave up.
        flops, bytes_accessed: the compiler's count for one chip, each loop once.
        advice: what to change where the program does not fit.
        refusal: the compiler's words where it gave up for want of memory.
    """

    program: str
    topology: str
    chips: int
    batch_size: int
    settings: str
    model_flops: float
    memory: Memory | None = None
    costs: Costs | None = None
    flops: float = 0.0
    bytes_accessed: float = 0.0
    advice: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def chip(self) -> Chip:
        """The figures of the topology's chips."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Whether the program fits a chip's memory, by the compiler and by its sum."""
        return self.memory is not None and self.memory.needed <= self.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """The time of one execution by the compiler's cycles, without collectives."""
        return self.costs.cycles / self.chip.clock if self.costs else float("nan")

    @property
    def traffic_seconds(self) -> float:
        """The least time of what has no cycles: its memory traffic over the bandwidth.

        That is what the gradients of max pools take, `select-and-scatter`.
        """
        if not self.costs:
            return float("nan")
        return self.costs.bytes_without_estimate / self.chip.hbm_bandwidth

    @property
    def communication_seconds(self) -> float:
        """The least time that collectives can take: links always busy, nothing waits.

        Each chip of a ring of n sends (n - 1) / n of the bytes, for a sum twice.
        """
        if not self.costs:
            return float("nan")
        sent = sum(
            collective.bytes * (2 if collective.kind == "all-reduce" else 1)
            for collective in self.costs.collectives
        )
        share = (self.chips - 1) / self.chips
        return sent * share / (self.chip.link_bandwidth / 2)

    @property
    def communication_share(self) -> float:
        """Communication's share of both times together, as if neither hid the other."""
        computing = self.seconds + self.traffic_seconds
        return self.communication_seconds / (computing + self.communication_seconds)

    @property
    def utilization(self) -> float:
        """The model's FLOPs over what the chips can do in `seconds`, from 0 to 1."""
        return self._utilization(self.seconds)

    @property
    def utilization_with_traffic(self) -> float:
        """The same with `traffic_seconds`, so that nothing is free of cost."""
        return self._utilization(self.seconds + self.traffic_seconds)

    def _utilization(self, seconds: float) -> float:
        return self.model_flops / (seconds * self.chips * self.chip.peak_flops)

    def to_dict(self) -> dict[str, Any]:
        """Returns every number as JSON can hold it."""
        values = dataclasses.asdict(self) | {
            "fits": self.fits,
            "hbm_bytes": self.chip.hbm_bytes,
        }
        if self.memory is None or self.costs is None:
            return values
        values["memory"]["needed"] = self.memory.needed
        values["costs"]["cycles"] = self.costs.cycles
        values["costs"]["operations"] = values["costs"]["operations"][:COSTLIEST]
        return values | {
            "seconds": self.seconds,
            "traffic_seconds": self.traffic_seconds,
            "communication_seconds": self.communication_seconds,
            "communication_share": self.communication_share,
            "utilization": self.utilization,
            "utilization_with_traffic": self.utilization_with_traffic,
        }

    def __str__(self) -> str:
        head = (
            f"{self.program} on {self.topology}: {self.chips} chips, "
            f"{self.batch_size / self.chips:g} images a chip; {self.settings}"
        )
        paragraphs = [head, *self._paragraphs()]
        if not self.fits:
            flags = "\n".join(f"  {flag}" for flag in self.advice)
            paragraphs.append(f"It does not fit. What would make it smaller:\n{flags}")
        return "\n\n".join(paragraphs)

    def _paragraphs(self) -> list[str]:
        memory, costs, chip = self.memory, self.costs, self.chip
        if memory is None or costs is None:
            return [f"The compiler: {self.refusal}"]
        lines = [
            ("HBM needed", _gib(memory.needed), f"of {_gib(chip.hbm_bytes)}"),
            ("  arguments", _gib(memory.arguments), ""),
            ("  outputs of their own", _gib(memory.outputs), ""),
            ("  temporaries", _gib(memory.temporaries), ""),
            ("  code", _gib(memory.code), ""),
            ("FLOPs", f"{self.flops:.4g}", ""),
            ("bytes accessed", f"{self.bytes_accessed:.4g}", ""),
            (
                "cycles estimated",
                f"{costs.cycles:,}",
                f"{1e3 * self.seconds:.2f} ms, at most "
                f"{self.batch_size / self.seconds:,.0f} images/s on all chips",
            ),
            ("model FLOPs utilization", f"{self.utilization:.1%}", "by these cycles"),
        ]
        if costs.without_estimate:
            lines.append(
                (
                    "  with what has none",
                    f"{self.utilization_with_traffic:.1%}",
                    f"and {1e3 * self.traffic_seconds:.2f} ms of memory traffic, see "
                    "below",
                )
            )
        for one in costs.collectives:
            lines.append((one.kind, f"{one.bytes:,} bytes", f"in {one.count}"))
        if costs.collectives:
            lines.append(
                (
                    "communication",
                    f"{self.communication_share:.1%}",
                    f"{1e3 * self.communication_seconds:.2f} ms at best, if not hidden",
                )
            )
        width = max(len(label) for label, _, _ in lines)
        paragraphs = [
            "\n".join(
                f"{label:{width}}  {value:>18}  {note}".rstrip()
                for label, value, note in lines
            ),
            format_columns(
                ["costliest operations", "cycles", "share", "result"],
                [
                    [
                        operation.source,
                        f"{operation.cycles:,}",
                        f"{operation.cycles / costs.cycles:.1%}",
                        _shortened(operation.result),
                    ]
                    for operation in costs.operations[:COSTLIEST]
                ],
            ),
        ]
        if costs.without_estimate:
            named = ", ".join(
                f"{one.count} {one.opcode} ({one.bytes / 1e6:,.0f} MB)"
                for one in costs.without_estimate
            )
            paragraphs.append(
                f"Not in the cycles, having no estimate: {named}. They read and write "
                "at least these bytes of memory."
            )
        if costs.unknown_loops:
            paragraphs.append(f"Loops counted as one turn: {costs.unknown_loops}.")
        return paragraphs


def format_growth(reports: list[Report]) -> str:
    """Returns a table of how communication grows with the chips, a line a report."""
    return format_columns(
        [
            "program",
            "topology",
            "a chip",
            "HBM",
            "ms",
            "MFU",
            "MFU with all",
            "all bytes",
            "share",
        ],
        [
            [
                report.program,
                report.topology,
                f"{report.batch_size / report.chips:g}",
                _gib(report.memory.needed) if report.memory else "too much",
                f"{1e3 * report.seconds:.2f}",
                f"{report.utilization:.1%}",
                f"{report.utilization_with_traffic:.1%}",
                f"{_communicated(report):,}",
                f"{report.communication_share:.1%}",
            ]
            for report in reports
        ],
    )


def _communicated(report: Report) -> int:
    return sum(c.bytes for c in report.costs.collectives) if report.costs else 0


def _gib(count: float) -> str:
    return f"{count / GIB:.3f} GiB"


def _shortened(result: str, limit: int = 44) -> str:
    return result if len(result) <= limit else result[: limit - 3] + "..."

"""What the TPU compiler found out about one program: numbers, and a text of them."""

import dataclasses
from typing import Any

from vgg_jax.console import format_columns
from vgg_jax.tools.hlo import Costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as a compiler and a budget see it.

    Args:
        hbm_bytes: memory.
        hbm_bandwidth: of that memory, bytes/s.
        peak_flops: in bfloat16, FLOP/s.
        clock: cycles/s, of the compiler's cycles.
        link_bandwidth: to the other chips over all links, bytes/s in both directions.
        options: of `get_topology_desc`, so that a device is a chip.
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
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1.2e12,
        peak_flops=275e12,
        clock=1.05e9,
        link_bandwidth=600e9,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        hbm_bytes=16 * 2**30,
        hbm_bandwidth=819e9,
        peak_flops=197e12,
        clock=1.5e9,
        link_bandwidth=400e9,
    ),
    "v5p": Chip(
        hbm_bytes=95 * 2**30,
        hbm_bandwidth=2765e9,
        peak_flops=459e12,
        clock=1.75e9,
        link_bandwidth=1200e9,
    ),
    "v6e": Chip(
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1638e9,
        peak_flops=918e12,
        clock=1.75e9,
        link_bandwidth=800e9,
    ),
}


COSTLIEST = 10
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of HBM on one chip."""

    arguments: int
    outputs: int  # that do not take the place of arguments
    temporaries: int
    code: int

    @property
    def needed(self) -> int:
        """All of it at once."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One program on one topology; prints as a text.

    Args:
        program: its name.
        topology: such as "v5e:2x4".
        chips: how many.
        batch_size: images of all chips.
        model_flops: of the convolutions of these images by their definition, FLOP of
            all chips: twice the multiply-adds, and twice that again for the gradients.
        memory: None where the compiler gave up.
        costs: likewise.
        flops, bytes_accessed: of one chip, as the compiler counts; loops count once.
        advice: what to change where it does not fit.
        refusal: the compiler's words where it gave up for want of memory.
    """

    program: str
    topology: str
    chips: int
    batch_size: int
    model_flops: float
    memory: Memory | None = None
    costs: Costs | None = None
    flops: float = 0.0
    bytes_accessed: float = 0.0
    advice: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Into the memory of a chip, by the compiler and by our sum."""
        return self.memory is not None and self.memory.needed <= self.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """One execution by the compiler's cycles, collectives not counted."""
        return self.costs.cycles / self.chip.clock if self.costs else float("nan")

    @property
    def communication_seconds(self) -> float:
        """At best: all links of a chip busy, one way, and nothing waits.

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
        """Of both times together, as if neither hid the other."""
        return self.communication_seconds / (self.seconds + self.communication_seconds)

    @property
    def utilization(self) -> float:
        """Model FLOPs over what the chips can do in `seconds`, from 0 to 1."""
        possible = self.seconds * self.chips * self.chip.peak_flops
        return self.model_flops / possible

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON can hold it."""
        found = dataclasses.asdict(self) | {
            "fits": self.fits,
            "hbm_bytes": self.chip.hbm_bytes,
        }
        if self.memory is None or self.costs is None:
            return found
        found["memory"]["needed"] = self.memory.needed
        found["costs"]["cycles"] = self.costs.cycles
        found["costs"]["operations"] = found["costs"]["operations"][:COSTLIEST]
        return found | {
            "seconds": self.seconds,
            "communication_seconds": self.communication_seconds,
            "communication_share": self.communication_share,
            "utilization": self.utilization,
        }

    def __str__(self) -> str:
        head = (
            f"{self.program} on {self.topology}: {self.chips} chips, "
            f"{self.batch_size / self.chips:g} images a chip"
        )
        parts = [head, *self._numbers()]
        if not self.fits:
            wishes = "\n".join(f"  {wish}" for wish in self.advice)
            parts.append(f"It does not fit. What would make it smaller:\n{wishes}")
        return "\n\n".join(parts)

    def _numbers(self) -> list[str]:
        memory, costs, chip = self.memory, self.costs, self.chip
        if memory is None or costs is None:
            return [f"The compiler: {self.refusal}"]
        rows = [
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
            ("model FLOPs utilization", f"{self.utilization:.1%}", ""),
        ]
        for found in costs.collectives:
            rows.append((found.kind, f"{found.bytes:,} bytes", f"in {found.count}"))
        if costs.collectives:
            rows.append(
                (
                    "communication",
                    f"{self.communication_share:.1%}",
                    f"{1e3 * self.communication_seconds:.2f} ms at best, if not hidden",
                )
            )
        width = max(len(label) for label, _, _ in rows)
        parts = [
            "\n".join(
                f"{label:{width}}  {value:>18}  {note}".rstrip()
                for label, value, note in rows
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
            named = ", ".join(f"{n} {op}" for op, n in costs.without_estimate.items())
            parts.append(f"Not in the cycles, having no estimate: {named}.")
        if costs.unknown_loops:
            parts.append(f"Loops counted as one turn: {costs.unknown_loops}.")
        return parts


def format_growth(reports: list[Report]) -> str:
    """How communication grows: one row a report."""
    return format_columns(
        ["program", "topology", "a chip", "HBM", "ms", "MFU", "all bytes", "share"],
        [
            [
                report.program,
                report.topology,
                f"{report.batch_size / report.chips:g}",
                _gib(report.memory.needed) if report.memory else "too much",
                f"{1e3 * report.seconds:.2f}",
                f"{report.utilization:.1%}",
                f"{_communicated(report):,}",
                f"{report.communication_share:.1%}",
            ]
            for report in reports
        ],
    )


def _communicated(report: Report) -> int:
    return sum(c.bytes for c in report.costs.collectives) if report.costs else 0


def _gib(count: float) -> str:
    return f"{count / _GIB:.3f} GiB"


def _shortened(result: str, limit: int = 44) -> str:
    return result if len(result) <= limit else result[: limit - 3] + "..."

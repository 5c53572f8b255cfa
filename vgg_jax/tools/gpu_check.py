"""Asks the compiler for NVIDIA GPUs what a run needs on one, without one.

    pip install -r requirements-cuda.txt
    python -m vgg_jax.tools.gpu_check --config configs/vgg16.py --cards h200:1
    python -m vgg_jax.tools.gpu_check --weights torchvision/vgg16

Compiles the training step and the dense evaluator of a configuration for cards that
need not be there, in seconds. Prints memory, the bytes that kernels read and write, and
communication; it is not a measurement. Which convolutions cuDNN chooses, and what
memory it needs for these, is decided on a card. Any setting can follow, such as
--config.batch_size=512. Exits with 1 where a program does not fit into what JAX takes
of a card's memory, three quarters.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.console import did_you_mean, format_columns
from vgg_jax.distributed import make_mesh
from vgg_jax.memory import GIB
from vgg_jax.tools.hlo import Collective, Kernel, kernels, program_costs
from vgg_jax.tools.programs import (
    Memory,
    add_arguments,
    finish,
    lower_program,
    prepare,
)

LARGEST = 10  # kernels that a report names
# What JAX takes of a card's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
SHARE = 0.75
INSTALL = "pip install -r requirements-cuda.txt (needs no GPU)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The figures of one kind of card, as its data sheet and CUDA give them.

    Args:
        name: as the driver calls it.
        capability: CUDA's compute capability.
        cores: streaming multiprocessors.
        lanes: float32 operations of one in a cycle.
        shared_memory: bytes of one that its blocks share; a block can have a KiB less.
        cache: bytes of L2.
        clock: cycles/s.
        memory: bytes, as CUDA reports them.
        bandwidth: of that memory, bytes/s.
        peak: the most it computes in bfloat16, FLOP/s, and in float32 by TF32 half of
            it.
    """

    name: str
    capability: int
    cores: int
    lanes: int
    shared_memory: int
    cache: int
    clock: float
    memory: int
    bandwidth: float
    peak: float

    def describe(self) -> str:
        """Returns the description that the compiler reads, GpuTargetConfigProto."""
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared_memory,
            "shared_memory_per_block_optin": self.shared_memory - 1024,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
            "memory_bandwidth": int(self.bandwidth),
            "device_memory_size": self.memory,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock / 1e9,
        }
        lines = "\n".join(f"{key}: {value}" for key, value in info.items())
        return (
            f"gpu_device_info {{\n{lines}\n"
            f"cuda_compute_capability {{ major: {self.capability} }}\n}}\n"
            f'platform_name: "CUDA"\ndevice_description_str: "{self.name}"\n'
            f"dnn_version_info {{ {_version('nvidia-cudnn')} }}\n"
            f"runtime_version {{ {_version('nvidia-cuda-runtime')} }}\n"
        )


_H100 = Card(
    name="NVIDIA H100 80GB HBM3",
    capability=9,
    cores=132,
    lanes=128,
    shared_memory=228 * 1024,
    cache=50 * 2**20,
    clock=1.98e9,
    memory=84_929_347_584,
    bandwidth=3.35e12,
    peak=989.5e12,
)

CARDS = {
    "a100": Card(
        name="NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        lanes=64,
        shared_memory=164 * 1024,
        cache=40 * 2**20,
        clock=1.41e9,
        memory=85_100_068_864,
        bandwidth=2.039e12,
        peak=312e12,
    ),
    "h100": _H100,
    # The same chip with more and faster memory.
    "h200": dataclasses.replace(
        _H100, name="NVIDIA H200", memory=151_397_597_184, bandwidth=4.8e12
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one program costs on cards; prints as a text.

    Args:
        program: the program's name.
        card: the card.
        cards: how many there are.
        batch_size: how many images all cards together take at once.
        settings: the settings on which the speed depends.
        dtype: the type that the network computes in.
        model_flops: see `vgg_jax.tools.programs.Lowered`.
        memory: what the program takes of a card.
        kernels: what it runs on a card, but for collectives.
        collectives: what is combined with other cards, a value a kind.
        advice: what to change where the program does not fit.
    """

    program: str
    card: Card
    cards: int
    batch_size: int
    settings: str
    dtype: str
    model_flops: float
    memory: Memory
    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the program fits what JAX takes of a card's memory."""
        return self.memory.needed <= SHARE * self.card.memory

    def bytes(self, *, products: bool) -> int:
        """Returns what convolutions and products move, or what all else does."""
        return sum(k.bytes for k in self.kernels if k.is_product == products)

    @property
    def peak_seconds(self) -> float:
        """The time of the model's FLOPs at the peak."""
        peak = self.card.peak if self.dtype == "bfloat16" else self.card.peak / 2
        return self.model_flops / (self.cards * peak)

    @property
    def product_seconds(self) -> float:
        """The least time of convolutions and products: arithmetic or memory traffic."""
        return max(self.peak_seconds, self.bytes(products=True) / self.card.bandwidth)

    @property
    def other_seconds(self) -> float:
        """The least time of all other kernels: their memory traffic."""
        return self.bytes(products=False) / self.card.bandwidth

    @property
    def utilization(self) -> float:
        """The most that the model's FLOPs can be of the peak, by the times above."""
        return self.peak_seconds / (self.product_seconds + self.other_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Returns every number as JSON can hold it."""
        values = dataclasses.asdict(self)
        values["kernels"] = [dataclasses.asdict(k) for k in self._largest()]
        values["memory"]["needed"] = self.memory.needed
        return values | {
            "fits": self.fits,
            "kernel_count": len(self.kernels),
            "product_bytes": self.bytes(products=True),
            "other_bytes": self.bytes(products=False),
            "product_seconds": self.product_seconds,
            "other_seconds": self.other_seconds,
            "utilization": self.utilization,
        }

    def _largest(self) -> list[Kernel]:
        others = (kernel for kernel in self.kernels if not kernel.is_product)
        return sorted(others, key=lambda kernel: -kernel.bytes)[:LARGEST]

    def __str__(self) -> str:
        memory, products = self.memory, sum(k.is_product for k in self.kernels)
        lines = [
            (
                "memory needed",
                f"{memory.needed / GIB:.2f} GiB",
                f"of {SHARE * self.card.memory / GIB:.0f} GiB, which JAX takes of "
                f"{self.card.memory / GIB:.0f}",
            ),
            ("  arguments", f"{memory.arguments / GIB:.2f} GiB", ""),
            ("  outputs of their own", f"{memory.outputs / GIB:.2f} GiB", ""),
            ("  temporaries", f"{memory.temporaries / GIB:.2f} GiB", ""),
            (
                "convolutions, products",
                f"{self.bytes(products=True) / 1e9:.1f} GB",
                f"in {products} kernels, at least {1e3 * self.product_seconds:.1f} ms",
            ),
            (
                "all else",
                f"{self.bytes(products=False) / 1e9:.1f} GB",
                f"in {len(self.kernels) - products} kernels, at least "
                f"{1e3 * self.other_seconds:.1f} ms",
            ),
            (
                "model FLOPs utilization",
                f"{self.utilization:.0%}",
                "at most, by these times",
            ),
            *(
                (one.kind, f"{one.bytes / 1e6:,.0f} MB", f"in {one.count}")
                for one in self.collectives
            ),
        ]
        width = max(len(label) for label, _, _ in lines)
        paragraphs = [
            f"{self.program} on {self.cards} x {self.card.name}, "
            f"{self.batch_size / self.cards:g} images a card; {self.settings}",
            "\n".join(
                f"{label:{width}}  {value:>12}  {note}".rstrip()
                for label, value, note in lines
            ),
            format_columns(
                ["what moves the most, beside products", "MB", "result"],
                [
                    [kernel.source, f"{kernel.bytes / 1e6:,.0f}", kernel.result[:60]]
                    for kernel in self._largest()
                ],
            ),
        ]
        if not self.fits:
            flags = "\n".join(f"  {flag}" for flag in self.advice)
            paragraphs.append(f"It does not fit. What would make it smaller:\n{flags}")
        return "\n\n".join(paragraphs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.tools.gpu_check", __doc__, config=(Config,))
    add_arguments(parser)
    parser.add_argument(
        "--cards",
        type=cli.comma_separated(str),
        default=("h200:1",),
        metavar="NAME:N,NAME:N",
        help="cards and their number in one machine; several are compiled for; "
        f"h200:1 by default, known cards are {', '.join(CARDS)}",
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Compiles and reports; returns 0, or 1 where a program does not fit a card."""
    known = [find_cards(name) for name in values.cards]
    config = prepare(values)
    reports = []
    for card, count in known:
        mesh = mesh_of(card, count)
        for program in values.programs:
            reports.append(compile_program(config, program, card, mesh))
            print(f"{reports[-1]}\n", flush=True)
    return finish(reports, values.json)


def find_cards(words: str) -> tuple[Card, int]:
    """Returns the card and the number of such words as "h200:8" and "h200".

    Raises:
        UsageError: the card is unknown, or the number is none.
    """
    name, colon, number = words.partition(":")
    if name not in CARDS:
        raise cli.UsageError(f"unknown card {name!r}: {did_you_mean(name, CARDS)}")
    if colon and not (re.fullmatch(r"\d{1,6}", number, re.ASCII) and int(number)):
        raise cli.UsageError(f"expected cards such as {name}:8, got {words!r}")
    return CARDS[name], int(number or 1)


def mesh_of(card: Card, count: int) -> Mesh:
    """Makes a mesh of cards that need not be there.

    Raises:
        ImportError: the compiler is not installed, or does not start.
    """
    described = card.describe()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # leaves a card that is there alone
    try:
        description = topologies.get_topology_desc(
            "", "cuda", target_config=described, topology=f"1x1x{count}"
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ImportError(
            f"the compiler for GPUs does not start: {error}; {INSTALL}"
        ) from error
    return make_mesh(description.devices)


def compile_program(config: Config, program: str, card: Card, mesh: Mesh) -> Report:
    """Compiles a program for the cards of a mesh, and reports its costs.

    Raises:
        ValueError: settings do not fit one another, or the cards.
    """
    lowered = lower_program(config, program, mesh)
    compiled: Any = lowered.stage.compile()
    text = compiled.as_text()
    return Report(
        program=program,
        card=card,
        cards=mesh.size,
        batch_size=lowered.batch_size,
        settings=lowered.settings,
        dtype=lowered.dtype,
        model_flops=lowered.model_flops,
        memory=Memory.of(compiled),
        kernels=kernels(text),
        collectives=program_costs(text).collectives,
        advice=lowered.advice,
    )


def _version(package: str) -> str:
    """Returns the version of an NVIDIA package, of whatever CUDA, as the proto has it.

    Raises:
        ImportError: no such package is installed.
    """
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower()
        if name == package or name.startswith(f"{package}-cu"):
            parts = zip(
                ("major", "minor", "patch"),
                distribution.version.split("."),
                strict=False,
            )
            return " ".join(f"{part}: {number}" for part, number in parts)
    raise ImportError(f"{package} is not installed: {INSTALL}")


if __name__ == "__main__":
    sys.exit(main())

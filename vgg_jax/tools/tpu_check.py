"""Asks the TPU compiler what a run needs on a TPU, without one.

    pip install -r requirements-tpu.txt
    python -m vgg_jax.tools.tpu_check --config configs/vgg16.py --topology v5e:2x4
    python -m vgg_jax.tools.tpu_check --weights torchvision/vgg16

Compiles the training step and the dense evaluator of a configuration for chips that
need not be there, minutes each on two CPU cores. Prints memory, FLOPs, communication
and the compiler's estimate of the time. Any setting can follow, such as
--config.batch_size=512. Exits with 1 where a program does not fit into a chip's memory.
"""

import argparse
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.console import did_you_mean
from vgg_jax.distributed import make_mesh
from vgg_jax.tools.hlo import program_costs
from vgg_jax.tools.programs import (
    Memory,
    add_arguments,
    finish,
    lower_program,
    prepare,
)
from vgg_jax.tools.tpu_report import CHIPS, Report, format_growth

# The compiler asks for no chip and no metadata server, and several may run at once.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: only keeps it from complaining
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("python -m vgg_jax.tools.tpu_check", __doc__, config=(Config,))
    parser.add_argument(
        "--topology",
        type=cli.comma_separated(str),
        default=("v5e:2x4",),
        metavar="NAME,NAME",
        help="chips and their arrangement; several are compared; v5e:2x4 by default, "
        f"known chips are {', '.join(CHIPS)}",
    )
    add_arguments(parser)
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Compiles and reports; returns 0, or 1 where a program does not fit a chip."""
    for topology in values.topology:
        chip_kind(topology)
    config = prepare(values)
    meshes = {name: topology_mesh(name) for name in values.topology}
    reports: list[Report] = []
    for program in values.programs:
        for topology, mesh in meshes.items():
            print(f"compiling {program} for {topology}", file=sys.stderr, flush=True)
            start = time.monotonic()
            reports.append(compile_program(config, program, topology, mesh))
            print(f"took {time.monotonic() - start:.0f} s", file=sys.stderr)
            print(f"{reports[-1]}\n", flush=True)
    if len(meshes) > 1:
        print(format_growth(reports))
    return finish(reports, values.json)


def chip_kind(topology: str) -> str:
    """Returns "v5e" for a topology such as "v5e:2x4".

    Raises:
        UsageError: the TPU is unknown.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise cli.UsageError(
            f"unknown TPU {kind!r} in topology {topology!r}: "
            f"{did_you_mean(kind, CHIPS)}"
        )
    return kind


def topology_mesh(topology: str) -> Mesh:
    """Makes a mesh of all chips of a topology such as "v5e:2x4".

    The chips need not be there: only the compiler is asked about them.

    Raises:
        UsageError: the TPU or the arrangement of its chips is unknown.
        ImportError: the compiler is not installed.
    """
    kind = chip_kind(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "the TPU compiler, libtpu, is not installed: "
            "pip install -r requirements-tpu.txt (needs no TPU)"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        description = topologies.get_topology_desc(
            topology, "tpu", **CHIPS[kind].options
        )
    except jax.errors.JaxRuntimeError as error:
        raise cli.UsageError(
            f"expected a topology such as {kind}:2x4 (v5e, v6e) or {kind}:2x2x1 (v4, "
            f"v5p), got {topology!r}; the compiler: {_first_line(error)}"
        ) from error
    return make_mesh(description.devices)


def compile_program(config: Config, program: str, topology: str, mesh: Mesh) -> Report:
    """Compiles one of `PROGRAMS` for the chips of a topology, and reports its costs.

    Raises:
        ValueError: settings do not fit one another, or the chips.
    """
    lowered = lower_program(config, program, mesh)
    make_report = functools.partial(
        Report,
        program=program,
        topology=topology,
        chips=mesh.size,
        batch_size=lowered.batch_size,
        settings=lowered.settings,
        model_flops=lowered.model_flops,
        advice=lowered.advice,
    )
    try:
        compiled: Any = lowered.stage.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return make_report(refusal=_first_line(error))
    counted = compiled.cost_analysis()
    return make_report(
        memory=Memory.of(compiled),
        costs=program_costs(compiled.as_text()),
        flops=counted["flops"],
        bytes_accessed=counted["bytes accessed"],
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())

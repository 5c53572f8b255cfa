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
import dataclasses
import functools
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.console import did_you_mean
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.distributed import batch_sharding, make_mesh, replicated
from vgg_jax.files import write_json
from vgg_jax.inference.dense import Shape, largest_batch
from vgg_jax.inference.forward import Network, Posteriors
from vgg_jax.memory import evaluation_advice, training_advice
from vgg_jax.models.measure import summary
from vgg_jax.tools.hlo import program_costs
from vgg_jax.tools.tpu_report import CHIPS, Memory, Report, format_growth
from vgg_jax.training.program import (
    abstract_model,
    build_program,
    with_choices_for,
)
from vgg_jax.training.workdir.weights_folder import settings_of_weights

PROGRAMS = ("train_step", "dense")

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
    parser.add_weights(
        "weights whose network is compiled, with the settings of --config or none",
        have_settings=True,
    )
    parser.add_argument(
        "--topology",
        type=cli.comma_separated(str),
        default=("v5e:2x4",),
        metavar="NAME,NAME",
        help="chips and their arrangement; several are compared; v5e:2x4 by default, "
        f"known chips are {', '.join(CHIPS)}",
    )
    parser.add_argument(
        "--programs",
        type=cli.comma_separated(cli.one_of(PROGRAMS)),
        default=PROGRAMS,
        metavar="NAME,NAME",
        help=f"which to compile: {', '.join(PROGRAMS)}; all by default",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="a file for every number"
    )
    return cli.command(run, parser, arguments)


def run(values: argparse.Namespace) -> int:
    """Compiles and reports; returns 0, or 1 where a program does not fit a chip."""
    for topology in values.topology:
        chip_kind(topology)
    jax.config.update("jax_platforms", "cpu")  # leaves a TPU that is there alone
    # A program for chips that are not there cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    config = values.config
    if values.weights is not None:
        config, _ = settings_of_weights(
            values.weights, config, values.source, values.channels
        )
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
    if values.json:
        write_json(values.json, [report.to_dict() for report in reports])
    return cli.DONE if all(report.fits for report in reports) else cli.FAILED


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
    config = with_choices_for(mesh, config)
    options = dataclasses.asdict(config.model)
    if program == "train_step":
        train = build_program(config, mesh)
        lowered = train.train_step.lower(*train.arguments)
        shape, batch_size, passes = (config.data.crop,) * 2, config.batch_size, 3
    else:
        # The batch of the most pixels needs the most memory.
        per_device, shape = largest_batch(config, mesh.size)
        batch_size = per_device * mesh.size
        lowered, passes = lower_dense(config, mesh, shape, batch_size), 2
    multiply_adds = summary(options.pop("name"), shape, **options).multiply_adds
    make_report = functools.partial(
        Report,
        program=program,
        topology=topology,
        chips=mesh.size,
        batch_size=batch_size,
        settings=settings_line(config, program),
        model_flops=2.0 * passes * multiply_adds * batch_size,
        advice=tuple(memory_advice(config, program, mesh.size)),
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return make_report(refusal=_first_line(error))
    counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return make_report(
        memory=Memory(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
        ),
        costs=program_costs(compiled.as_text()),
        flops=counted["flops"],
        bytes_accessed=counted["bytes accessed"],
    )


def lower_dense(
    config: Config, mesh: Mesh, shape: Shape, batch_size: int
) -> jax.stages.Lowered:
    """Lowers the program of the protocol "dense" for images padded to one shape.

    It is the program that eval.py runs, `vgg_jax.inference.forward.apply`.
    """
    network = Network.from_model(abstract_model(config), preprocessing_of(config.data))
    abstract = functools.partial(_abstract, sharding=replicated(mesh))
    variables = jax.tree.map(abstract, network.variables)
    batch = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    return dataclasses.replace(network, variables=variables).lower(
        Posteriors(averaging=config.evaluation.averaging),
        batch((batch_size, *shape, network.channels), jnp.uint8),
        batch((batch_size, 2), jnp.int32),
    )


def _abstract(array: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def settings_line(config: Config, program: str) -> str:
    """Returns the settings of a program on which its speed depends, on one line."""
    words = [config.model.dtype]
    if program == "train_step":
        words += ["shard_fc"] * bool(config.shard_fc) + ["remat"] * config.remat
        if config.accumulate_steps > 1:
            words.append(f"accumulate_steps={config.accumulate_steps}")
    return ", ".join(map(str, words))


def memory_advice(config: Config, program: str, chips: int) -> Iterator[str]:
    """Yields flags with which a program needs less memory, the mildest first."""
    if program == "train_step":
        advice = training_advice(config, chips)
    else:
        images_per_chip, _ = largest_batch(config, chips)
        advice = itertools.chain(
            ["model.dtype=bfloat16"] if config.model.dtype == "float32" else [],
            evaluation_advice(config, chips, images_per_device=images_per_chip),
        )
    for setting in advice:
        yield f"--config.{setting}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())

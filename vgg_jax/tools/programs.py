"""This module lowers a run's programs for devices that need not be there."""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vgg_jax import cli
from vgg_jax.config import Config
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.distributed import batch_sharding, replicated
from vgg_jax.files import validate_writable, write_json
from vgg_jax.inference.dense import Shape, largest_batch
from vgg_jax.inference.forward import Network, Posteriors
from vgg_jax.memory import evaluation_advice, training_advice
from vgg_jax.models.measure import summary
from vgg_jax.training.program import (
    abstract_model,
    build_program,
    with_choices_for,
)
from vgg_jax.training.workdir.weights_folder import settings_of_weights

PROGRAMS = ("train_step", "dense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What a program takes of one device's memory, in bytes.

    Args:
        arguments: the arrays that it is given.
        outputs: the results that do not take the place of arguments.
        temporaries: what it needs while it runs.
        code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int

    @classmethod
    def of(cls, compiled: Any) -> "Memory":
        """Asks a compiled program."""
        memory = compiled.memory_analysis()
        return cls(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
        )

    @property
    def needed(self) -> int:
        """The sum of all four, as they are in memory at once."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program that is ready to be compiled.

    Args:
        stage: the program.
        batch_size: how many images all devices together take at once.
        model_flops: FLOP of the convolutions of these images by their definition, on
            all devices: twice the multiply-adds, and twice that again for gradients.
        dtype: the type that the network computes in.
        settings: the settings on which the speed depends, "bfloat16, shard_fc".
        advice: flags with which it needs less memory, the mildest first.
    """

    stage: jax.stages.Lowered
    batch_size: int
    model_flops: float
    dtype: str
    settings: str
    advice: tuple[str, ...]


class Report(Protocol):
    """What a command says of a program."""

    @property
    def fits(self) -> bool:
        """Whether the program fits a device's memory."""

    def to_dict(self) -> dict[str, Any]:
        """Returns every number as JSON can hold it."""


def add_arguments(parser: cli.Parser) -> None:
    """Adds the arguments that say what to compile."""
    parser.add_weights(
        "weights whose network is compiled, with the settings of --config or none",
        have_settings=True,
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


def prepare(values: argparse.Namespace) -> Config:
    """Returns the configuration that these arguments tell, before anything compiles.

    JAX runs on CPU then, and compiles for other devices without its cache.

    Raises:
        OSError: the file for the numbers cannot be written.
    """
    jax.config.update("jax_platforms", "cpu")
    # A program for devices that are not there cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    if values.json is not None:
        validate_writable(values.json.parent)
        values.json.parent.mkdir(parents=True, exist_ok=True)
    config: Config = values.config
    if values.weights is not None:
        config, _ = settings_of_weights(
            values.weights, config, values.source, values.channels
        )
    return config


def lower_program(config: Config, program: str, mesh: Mesh) -> Lowered:
    """Lowers one of `PROGRAMS` for the devices of a mesh.

    Args:
        config: the configuration.
        program: the program's name.
        mesh: the devices.

    Raises:
        ValueError: settings do not fit one another, or the devices.
    """
    config = with_choices_for(mesh, config)
    options = dataclasses.asdict(config.model)
    if program == "train_step":
        train = build_program(config, mesh)
        stage = train.train_step.lower(*train.arguments)
        shape, batch_size, passes = (config.data.crop,) * 2, config.batch_size, 3
    else:
        # The batch of the most pixels needs the most memory.
        per_device, shape = largest_batch(config, mesh.size)
        batch_size = per_device * mesh.size
        stage, passes = lower_dense(config, mesh, shape, batch_size), 2
    multiply_adds = summary(options.pop("name"), shape, **options).multiply_adds
    return Lowered(
        stage,
        batch_size,
        model_flops=2.0 * passes * multiply_adds * batch_size,
        dtype=str(config.model.dtype),
        settings=settings_line(config, program),
        advice=tuple(memory_advice(config, program, mesh.size)),
    )


def finish(reports: Sequence[Report], file: Path | None) -> int:
    """Writes the numbers of reports to a file, or not, and returns the exit code."""
    if file is not None:
        write_json(file, [report.to_dict() for report in reports])
    return cli.DONE if all(report.fits for report in reports) else cli.FAILED


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

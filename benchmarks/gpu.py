"""Measures training and dense evaluation on the GPUs of this machine.

    python -m benchmarks.gpu [CASE ...] [--dtype float32] [--seconds 5]

Prints the card's name and a table in Markdown: images a second of whole training steps,
whose batch is on the devices already, and of the dense evaluation of images of the
paper's shapes, each with its mirror image. A part that does not fit into the cards'
memory is named on stderr, with the settings that need less, and "-" in the table.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from benchmarks.cases import make_case, random_batch, small_vgg13
from benchmarks.worker import Steps, seconds_a_step, steps_that_fill
from vgg_jax import create_model
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import Config, VGGConfig
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.inference.dense import images_per_device, padded_shapes
from vgg_jax.inference.forward import Network, Posteriors
from vgg_jax.memory import (
    OutOfMemory,
    evaluation_advice,
    naming_settings,
    training_advice,
)
from vgg_jax.training.program import build_program

DTYPES = ("float32", "bfloat16")
RATIO = 1.34  # width over height of most photographs


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured of one network.

    Args:
        config: the network, the side of a crop, and how many a step has for each card.
        scales: short sides Q of the dense evaluation, in pixels.
    """

    config: Config
    scales: tuple[int, ...]


CASES = {
    "vgg16": Case(make_case(VGGConfig(name="vgg16"), 224, 64), (256, 384, 512)),
    "vgg13_quarter": Case(make_case(small_vgg13(0.25), 32, 1024), (32,)),
}


def train_steps(config: Config, mesh: Mesh) -> Steps:
    """Makes a function that takes so many training steps."""
    program = build_program(config, mesh)
    batch = shard_batch(mesh, random_batch(program))
    state, key = program.init(jax.random.key(0)), jax.random.key(1)

    def take(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, sums = program.train_step(state, batch, key)
        jax.block_until_ready(sums)

    return take


def dense_steps(config: Config, mesh: Mesh, scale: int) -> tuple[Steps, int]:
    """Makes a function that evaluates so many batches; returns also its images."""
    model = create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    network = Network.from_model(model, preprocessing_of(config.data)).place(mesh)
    [shape] = padded_shapes([RATIO], scale)
    count = images_per_device(config, mesh.size, shape) * mesh.size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (count, *shape, network.channels), np.uint8),
        "size": np.tile(np.asarray(shape, np.int32), (count, 1)),
    }
    inputs = shard_batch(mesh, batch)

    def take(count: int) -> None:
        for _ in range(count):
            posteriors = network.run(Posteriors(), inputs["image"], inputs["size"])
        jax.block_until_ready(posteriors)

    return take, count


def measure_train(config: Config, mesh: Mesh, seconds: float) -> float:
    """Returns images a second of training."""
    with naming_settings("a training step", training_advice(config, mesh.size)):
        take = train_steps(config, mesh)
        step = seconds_a_step(take, steps_that_fill(take, seconds))
    return config.batch_size / step


def measure_dense(config: Config, mesh: Mesh, scale: int, seconds: float) -> float:
    """Returns images a second of the dense evaluation at a scale Q."""
    with naming_settings(f"a batch at Q={scale}", evaluation_advice(config, 2)):
        take, count = dense_steps(config, mesh, scale)
        step = seconds_a_step(take, steps_that_fill(take, seconds))
    return count / step


def print_case(
    name: str, case: Case, mesh: Mesh, dtypes: Sequence[str], seconds: float
) -> None:
    """Prints the rows of a case: training, and the dense evaluation at each scale."""
    for scale in (None, *case.scales):
        part = "train" if scale is None else f"dense, Q={scale}"
        cells = []
        for dtype in dtypes:
            config = copy.deepcopy(case.config)
            config.model.dtype = dtype
            config.batch_size *= mesh.size
            config.evaluation.batch_size *= mesh.size
            try:
                if scale is None:
                    rate = measure_train(config, mesh, seconds)
                else:
                    rate = measure_dense(config, mesh, scale, seconds)
                cells.append(f"{rate:,.0f}")
            except OutOfMemory as error:
                print(f"{name}, {part}, {dtype}: {error}", file=sys.stderr)
                cells.append("-")
        print(f"| {name} | {part} | {' | '.join(cells)} |", flush=True)


def main(command_line: Sequence[str] | None = None) -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="both by default"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of a measurement")
    arguments = parser.parse_args(command_line)
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; there are {', '.join(CASES)}")
    prepare_jax()
    mesh = make_mesh()
    dtypes = arguments.dtype or DTYPES
    card = mesh.devices.flat[0].device_kind
    print(f"{mesh.size} x {card}, jax {jax.__version__}\n")
    print(f"| network | part | {' | '.join(f'{d}, images/s' for d in dtypes)} |")
    print("| --- " * (2 + len(dtypes)) + "|", flush=True)
    for name in arguments.cases:
        print_case(name, CASES[name], mesh, dtypes, arguments.seconds)


if __name__ == "__main__":
    main()

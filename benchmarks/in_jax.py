"""Times JAX for cpu.py and gpu.py: the programs that the scripts run."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
from flax import nnx

from benchmarks.cases import dense_batches, random_batch
from benchmarks.worker import Part, Parts, Steps, main, timed
from vgg_jax import create_model
from vgg_jax.compilation import onednn_options, prepare_jax
from vgg_jax.config import Config, from_dict
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.inference.forward import Network, Posteriors
from vgg_jax.kernels import platforms
from vgg_jax.memory import evaluation_advice, naming_settings, training_advice
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import BatchNorm
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.program import Program, build_program
from vgg_jax.version import __version__
from vgg_jax.weights.save import arrays_in_torch

IMAGES = 8  # whose logits are compared


def open_parts(
    config: dict[str, Any],
    seconds: float,
    *,
    platform: str | None = None,
    tf32: bool = True,
    exchange: str = "",
) -> Parts:
    """Makes the parts that are measured of a configuration.

    Args:
        config: the configuration, as `to_dict` gives it.
        seconds: how long a measurement takes.
        platform: "cpu", where each step is given its batch by the host and is waited
            for; None for the card, on which a batch is already, and steps follow one
            another.
        tf32: whether products of float32 numbers may be of their first 10 bits.
        exchange: a file that "logits" writes for the other side.
    """
    if platform is not None:
        jax.config.update("jax_platforms", platform)
    jax.config.update("jax_default_matmul_precision", None if tf32 else "highest")
    prepare_jax()
    settings = from_dict(config)
    run = _Run(settings, is_waited_for=platform == "cpu")

    def part(make: Callable[[], Steps]) -> Part:
        return lambda: timed(make(), seconds)

    parts: dict[str, Part] = {
        "parameters": lambda: run.count_parameters,
        "facts": lambda: facts,
        "train": part(run.train),
        "train, plain forms": part(run.train_with_plain_forms),
        "forward": part(run.forward if platform == "cpu" else run.posteriors),
        "logits": lambda: lambda: save_logits(settings, exchange),
    }
    for scale in settings.evaluation.scales:
        parts[f"dense, Q={scale}"] = part(lambda scale=scale: run.dense(scale))  # type: ignore[misc]
    return parts


def facts() -> dict[str, str]:
    """Returns what the program runs on: versions, and the card."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "card": device.device_kind,
        "vgg_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "backend": device.client.platform_version.splitlines()[0],
    }


class _Run:
    """The steps of one configuration.

    Args:
        config: the configuration.
        is_waited_for: whether each step is given its batch by the host, and waited for;
            otherwise the batch is on the devices, and the last step alone is.
    """

    def __init__(self, config: Config, is_waited_for: bool):
        self._config = config
        self._is_waited_for = is_waited_for
        self._mesh = make_mesh()
        self._program = build_program(config, self._mesh)

    def count_parameters(self) -> int:
        """Returns the number of the network's parameters."""
        return sum(p.size for p in jax.tree.leaves(self._program.state.params))

    def train(self) -> Steps:
        """Makes a function that takes so many training steps."""
        return self._train(self._program)

    def train_with_plain_forms(self) -> Steps:
        """Makes the same without the forms of operations that are made for GPUs."""
        gpus, platforms.GPUS = platforms.GPUS, ()
        try:
            take = self._train(build_program(self._config, self._mesh))
            take(1)  # compiles
        finally:
            platforms.GPUS = gpus
        return take

    def _train(self, program: Program) -> Steps:
        give = self._batches(random_batch(program))
        state, key = program.init(jax.random.key(0)), jax.random.key(1)
        step = program.train_step
        if self._is_waited_for:  # as a run of `train.py` that is longer than `LONG_RUN`
            step = step.lower(*program.arguments).compile(onednn_options())

        def take(count: int) -> None:
            nonlocal state
            advice = training_advice(self._config, self._mesh.size)
            with naming_settings("a training step", advice):
                for _ in range(count):
                    state, sums = step(state, give(), key)
                    if self._is_waited_for:
                        jax.block_until_ready(sums)
                jax.block_until_ready((state, sums))

        return take

    def forward(self) -> Steps:
        """Makes a function that measures the errors of so many batches."""
        head = ExampleMetrics(CLASSIFICATION.objective, with_boxes=False)
        give = self._batches(random_batch(self._program))
        network = self._network()

        def take(count: int) -> None:
            for _ in range(count):
                rows = give()
                extras = {name: rows[name] for name in head.extras}
                metrics = network.run(head, rows["image"], None, extras)
                jax.block_until_ready(metrics)

        return take

    def posteriors(self) -> Steps:
        """Makes a function that computes the posteriors of so many batches."""
        images = self._batches(random_batch(self._program))()["image"]
        network, head = self._network(), Posteriors(flip=False)

        def take(count: int) -> None:
            for _ in range(count):
                posteriors = network.run(head, images)
            jax.block_until_ready(posteriors)

        return take

    def dense(self, scale: int) -> Steps:
        """Makes a function that evaluates the batches of a scale Q so many times."""
        network, head = self._network(), Posteriors()
        rng = np.random.default_rng(0)
        batches = []
        for batch in dense_batches(self._config, scale):
            shape = (batch.count, *batch.padded, network.channels)
            rows = {
                "image": rng.integers(0, 256, shape, np.uint8),
                "size": np.tile(np.asarray(batch.size, np.int32), (batch.count, 1)),
            }
            batches.append(shard_batch(self._mesh, rows))

        def take(count: int) -> None:
            with naming_settings(
                f"a batch at Q={scale}",
                evaluation_advice(self._config, 1, images_per_device=2),
            ):
                for _ in range(count):
                    posteriors = [
                        network.run(head, rows["image"], rows["size"])
                        for rows in batches
                    ]
                jax.block_until_ready(posteriors)

        return take

    def _network(self) -> Network:
        network = self._program.network(self._program.init(jax.random.key(0)))
        # On CPU as in an evaluation of more work than `passes.LONG_PASS`.
        return network.with_onednn() if self._is_waited_for else network

    def _batches(self, batch: dict[str, np.ndarray]) -> Callable[[], Any]:
        """Returns a function that gives a batch on the devices."""
        if self._is_waited_for:
            return lambda: shard_batch(self._mesh, batch)
        rows = jax.block_until_ready(shard_batch(self._mesh, batch))
        return lambda: rows


def save_logits(config: Config, file: str) -> float:
    """Writes a network's weights, images and their logits; returns the largest logit.

    Logits are computed in float32 throughout, of `IMAGES` images. The weights have
    PyTorch's names and axes.
    """
    config = copy.deepcopy(config)
    config.model.dtype, config.model.init = "float32", "he"
    options = vars(config.model)
    model: ConvNet = nnx.jit(lambda: create_model(**options, rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    for row in model.layers:
        if isinstance(row, BatchNorm):  # whose new statistics would change nothing
            norm = getattr(model, row.name)
            for variable in (norm.mean, norm.var, norm.scale, norm.bias):
                noise = rng.uniform(0.5, 1.5, variable.shape).astype(np.float32)
                variable.set_value(noise)
    side = config.data.crop
    shape = (IMAGES, side, side, config.model.in_channels)
    images = rng.standard_normal(shape, np.float32)
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(nnx.jit(lambda model, x: model(x))(model, images))
    arrays = arrays_in_torch(model, "torchvision")
    arrays |= {"images": images.transpose(0, 3, 1, 2), "logits": logits}
    np.savez(file, allow_pickle=False, **arrays)
    return float(np.abs(logits).max())


if __name__ == "__main__":
    main(open_parts)

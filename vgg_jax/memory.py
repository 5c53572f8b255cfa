"""Says which settings make a program smaller, where a device has too little memory."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from vgg_jax.config import Config

GIB = 2**30  # bytes


class OutOfMemory(RuntimeError):
    """A program needs more memory than its device has."""


def validate_state_fits(state: Any) -> None:
    """Checks that a device can hold its part of a run's state, before it is made.

    Without it a processor would first fill all of the machine's memory.

    Args:
        state: a tree of abstract arrays with shardings, on devices of this process.

    Raises:
        OutOfMemory: it cannot; the message has both sizes in GiB.
    """
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    there = _device_memory()
    if needed > there:
        raise OutOfMemory(
            f"the weights and what the optimizer keeps beside them need "
            f"{needed / GIB:,.1f} GiB, and a {_device_kind()} has {there / GIB:,.1f}; "
            "make model.width smaller, or model.fc_features where there are such layers"
        )


def _device_memory() -> float:
    """Returns how many bytes a device of this process has for itself, if it tells."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if devices[0].platform != "cpu":
        return math.inf
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine // len(devices)


def training_advice(config: Config, devices: int) -> Iterator[str]:
    """Yields settings with which a training step is smaller, the mildest first."""
    if config.model.dtype == "float32":
        yield "model.dtype=bfloat16"
    if not config.remat:
        yield "remat=True"
    if not config.shard_fc and devices > 1:
        yield "shard_fc=True"
    parts = 2 * config.accumulate_steps
    if config.batch_size % (parts * devices) == 0:
        yield f"accumulate_steps={parts}, or more"
    if config.batch_size > devices:
        yield f"batch_size={config.batch_size // 2}, or smaller, or more devices"


def evaluation_advice(
    config: Config, devices: int, *, images_per_device: int
) -> Iterator[str]:
    """Yields settings with which an evaluation's batch is smaller.

    Args:
        config: `evaluation` is looked at.
        devices: how many share a batch.
        images_per_device: how many images a device is given at once with it.
    """
    if images_per_device > 1:
        half = config.evaluation.crops_at_once(devices) // 2
        size = half - half % devices or max(1, half)  # what devices share is rounded up
        yield f"evaluation.batch_size={size}, or smaller"
    else:
        yield "evaluation.scales of smaller images, or a protocol of fewer crops"


@contextlib.contextmanager
def naming_settings(program: str, advice: Iterable[str]) -> Iterator[None]:
    """Adds to the error of a device whose memory is full what would need less.

    Args:
        program: what was run, for the message.
        advice: settings that make it smaller.

    Raises:
        OutOfMemory: in place of JAX's own error, in one line.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise OutOfMemory(
            f"{program} does not fit into the memory of a {_device_kind()}; it is "
            f"smaller with {'; '.join(advice)} ({reason})"
        ) from error


def _device_kind() -> str:
    return jax.local_devices()[0].device_kind

"""Data parallelism: one mesh of all devices, batches over its axis "data"."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh of these devices, by default all of every host."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The same arrays, whole on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, rows over the devices.

    Raises:
        ValueError: the rows do not divide over this process's devices.
    """
    local = len(mesh.local_devices)
    for name, rows in batch.items():
        if len(rows) % local:
            raise ValueError(
                f"expected a batch that {local} devices can share, got {len(rows)} "
                f"rows of {name!r}; make the batch size a multiple of {mesh.size}"
            )
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }

"""Makes one machine of several hosts and all of their devices.

Each host runs the same script. One mesh has all devices, and its axis "data" shares the
rows of a batch out over them.
"""

import glob
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.launcher import COORDINATOR, find_place, refuse_lonely

DATA = "data"  # the mesh's axis

# A host that is silent for so long is taken for dead, and all the others end.
HEARTBEAT_SECONDS = 30


def join() -> None:
    """Meets the other hosts, if this one belongs to several.

    It must be called before JAX has started. JAX knows the hosts of a Cloud TPU pod;
    `launcher.find_place` reads the variables of other launchers, and those of JAX where
    there is none. Where something else has met the others, as Ray does, nothing is left
    to do. Only host 0 goes on printing.

    Raises:
        ValueError: this is one process of several, and nothing says how they meet.
        RuntimeError: the other hosts did not come.
    """
    if not jax.distributed.is_initialized() and not (_meet_on_tpu() or _meet()):
        return
    print(f"host {jax.process_index()} of {jax.process_count()}", flush=True)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 open to the end


def _meet() -> bool:
    """Meets the other processes of a launcher; returns whether there are others."""
    place = find_place()
    if place is None:
        return False
    _initialize(
        coordinator_address=place.address,
        num_processes=place.count,
        process_id=place.index,
        cluster_detection_method=None if place.is_asked_by_jax else "deactivate",
    )
    return True


def _meet_on_tpu() -> bool:
    """Meets the other hosts of a TPU slice, unless the environment says who they are.

    Raises:
        ValueError: a launcher started several, and JAX met none of them.
    """
    if any(name in os.environ for name in COORDINATOR) or not _is_tpu_vm():
        return False
    try:
        _initialize()
    except ValueError:
        return False  # a TPU of one host, which nobody coordinates
    if jax.process_count() == 1:
        refuse_lonely()
    return True


def _initialize(**place: Any) -> None:
    """Has JAX meet the other hosts, with the timeouts of this module."""
    jax.distributed.initialize(
        **place,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def is_first() -> bool:
    """Whether this host writes what one host alone shall write."""
    return jax.process_index() == 0


def on_first(text: str) -> str | None:
    """The name of a progress bar: the text on the first host, None on others."""
    return text if is_first() else None


def several() -> bool:
    """Whether there are other hosts."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def abandon(code: int) -> None:
    """Ends this process at once if other hosts wait for it; otherwise does nothing.

    The others would wait in the middle of a step, and a clean exit would wait for them.
    """
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_tpu_vm() -> bool:
    """Whether this machine has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a one-axis mesh of these devices, by default of all that all hosts have."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device of a mesh."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that shares an array's rows out over a mesh's devices."""
    return NamedSharding(mesh, P(DATA))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts whole copies of a tree's arrays on every device of a mesh."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes arrays over all devices of a mesh from this process's rows of a batch.

    Raises:
        ValueError: this process's devices cannot share the rows evenly.
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

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
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"  # the mesh's axis

COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# A host that is silent for so long is taken for dead, and all the others end.
HEARTBEAT_SECONDS = 30


def join() -> None:
    """Meets the other hosts, if this one belongs to several.

    It must be called before JAX has started. JAX knows the hosts of a Cloud TPU pod and
    the tasks of Slurm and of Open MPI. Others are told by the environment variables
    `COORDINATOR`: where host 0 is (HOST:PORT), how many hosts there are, and which one
    this is, from 0. Only host 0 goes on printing.

    Raises:
        ValueError: some of the variables `COORDINATOR` are set and some are not.
        RuntimeError: the other hosts did not come.
    """
    given = [os.environ.get(name) for name in COORDINATOR]
    if any(given) and not all(given):
        missing = " and ".join(
            name for name, value in zip(COORDINATOR, given, strict=True) if not value
        )
        raise ValueError(f"expected {', '.join(COORDINATOR)} together; set {missing}")
    if not (any(given) or _launched_as_several(os.environ) or _is_tpu_vm()):
        return
    address, count, index = given
    try:
        jax.distributed.initialize(
            address,
            int(count) if count else None,
            int(index) if index else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError:
        if any(given) or _launched_as_several(os.environ):
            raise
        return  # a TPU of one host, which nobody coordinates
    print(f"host {jax.process_index()} of {jax.process_count()}", flush=True)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 open to the end


def is_first() -> bool:
    """Whether this host writes what one host alone shall write."""
    return jax.process_index() == 0


def on_first(text: str) -> str | None:
    """The name of a progress bar: the text on the first host, None on others."""
    return text if is_first() else None


def warn(text: str) -> None:
    """Prints a warning on stderr, on the first host alone."""
    if is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def on_any(is_so: bool) -> bool:
    """Returns whether something is so on any host; all hosts must ask together."""
    if not several():
        return is_so
    return bool(multihost_utils.process_allgather(np.array(is_so)).any())


def from_first(numbers: Sequence[int]) -> list[int]:
    """Returns the numbers that the first host gives; all hosts must ask together."""
    if not several():
        return list(numbers)
    count = multihost_utils.broadcast_one_to_all(np.int32(len(numbers)))
    own = np.resize(np.array([*numbers, 0], np.int32), int(count))
    return multihost_utils.broadcast_one_to_all(own).tolist()


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


def _launched_as_several(environment: Mapping[str, str]) -> bool:
    """Whether `srun` or `mpirun` started more than one task."""
    in_step = {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys()
    tasks = environment.get("SLURM_NTASKS", "1") if in_step else "1"
    return max(int(tasks), int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))) > 1


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

"""Saves a sharded state on several hosts, spoils the newer one, restores the older one.

python -m tests.training.workdir.save_on_hosts WORKDIR COORDINATOR HOSTS INDEX
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.distributed import DATA, make_mesh
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState
from vgg_jax.training.workdir.checkpoint import Checkpoints
from vgg_jax.training.workdir.digest import digests

METRIC = "validation_top5_error"


def make_state(step: int) -> TrainState:
    """Makes a state with a layer that is shared out over all devices."""
    mesh = make_mesh()
    rng = np.random.default_rng(step)
    values = {
        "conv": (rng.normal(size=(3, 8)), P()),
        "fc6": (rng.normal(size=(8, 64)), P(None, DATA)),
    }
    params = {
        name: jax.make_array_from_callback(
            value.shape,
            NamedSharding(mesh, spec),
            lambda index, value=value: value[index].astype(np.float32),
        )
        for name, (value, spec) in values.items()
    }
    return TrainState(
        step=jax.device_put(jnp.int32(step), NamedSharding(mesh, P())),
        params=params,
        batch_stats={},
        opt_state=params,
    )


def spoil(checkpoint: Path) -> None:
    """Empties the files that have the parameters."""
    for path in (checkpoint / "params").rglob("d/*"):
        path.write_bytes(b"")


def main(workdir: Path) -> None:
    """Prints the digests of step 2 and the step that is restored once 2 is spoiled."""
    with Checkpoints(workdir, METRIC, read_only=False) as checkpoints:
        checkpoints.save(make_state(1), Plateau(), {METRIC: 0.1})
        checkpoints.save(make_state(2), Plateau(), None)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
        make_state(0),
    )
    with Checkpoints(workdir, METRIC, read_only=False) as checkpoints:
        state, _ = checkpoints.restore(abstract, 2)
        print("digests", digests(state.params))
        multihost_utils.sync_global_devices("spoil")
        if jax.process_index() == 0:
            spoil(workdir / "checkpoints" / "2")
        multihost_utils.sync_global_devices("spoiled")
        restored = checkpoints.restore_newest(abstract)
        assert restored is not None
        again = dataclasses.replace(restored[0], step=state.step)
        checkpoints.save(again, Plateau(), None)
        print("restored", int(restored[0].step))


if __name__ == "__main__":
    folder, coordinator, hosts, index = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // int(hosts))
    if int(hosts) > 1:
        jax.distributed.initialize(coordinator, int(hosts), int(index))
    main(Path(folder))

"""Meshes of every machine: TPU slices, nodes of GPUs, hosts in any order."""

import dataclasses
import importlib.util
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vgg_jax.distributed import DATA, make_mesh
from vgg_jax.tools.tpu_check import topology_mesh

TOPOLOGIES = {
    "v4:2x2x4": "TPU v4",
    "v4:4x4x4": "TPU v4",
    "v5e:2x4": "TPU v5 lite",
    "v5e:4x4": "TPU v5 lite",
    "v5e:4x8": "TPU v5 lite",
    "v5e:8x8": "TPU v5 lite",
    "v5e:16x16": "TPU v5 lite",
    "v5p:2x2x2": "TPU v5",
    "v5p:4x4x4": "TPU v5",
    "v6e:4x4": "TPU v6 lite",
    "v6e:16x16": "TPU v6 lite",
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX says of an accelerator."""

    id: int
    process_index: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    slice_index: int | None = None


def tpu_slice(topology: str) -> list[Device]:
    """The chips of a slice, as `test_made_slices_are_those_of_the_compiler` holds.

    A host has 2x2 chips; ids go along the rows of the slice, hosts likewise.
    """
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    sides += [1] * (3 - len(sides))
    hosts = [sides[0] // 2, sides[1] // 2, sides[2]]
    return [
        Device(
            id=x + sides[0] * (y + sides[1] * z),
            process_index=x // 2 + hosts[0] * (y // 2 + hosts[1] * z),
            platform="tpu",
            device_kind=TOPOLOGIES[topology],
            coords=(x, y, z),
        )
        for z, y, x in itertools.product(*map(range, reversed(sides)))
    ]


def gpu_nodes(nodes: int, each: int) -> list[Device]:
    """GPUs of several nodes, each of which XLA takes for a slice of its own."""
    return [
        Device(
            id=i,
            process_index=i,
            platform="gpu",
            device_kind="NVIDIA H100 80GB HBM3",
            slice_index=i // each,
        )
        for i in range(nodes * each)
    ]


def one_of_each_host(devices: list[Device]) -> list[Device]:
    return list({device.process_index: device for device in devices}.values())


def hosts_of(mesh: Mesh) -> list[int]:
    return [device.process_index for device in mesh.devices.flat]


MACHINES = {
    **{topology: tpu_slice(topology) for topology in TOPOLOGIES},
    "2 nodes of 4 GPUs": gpu_nodes(2, 4),
    "16 nodes of 8 GPUs": gpu_nodes(16, 8),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_all_devices_and_one_of_each_host_make_a_mesh(machine: str) -> None:
    everything = MACHINES[machine]
    shuffled = np.random.default_rng(0).permutation(np.array(everything)).tolist()
    for devices in (shuffled, one_of_each_host(shuffled)):
        mesh = make_mesh(devices)
        assert mesh.axis_names == (DATA,) and mesh.size == len(devices)
        assert set(mesh.devices.flat) == set(devices)
        # The rows of a host are neighbors, and hosts come in their order.
        assert hosts_of(mesh) == sorted(device.process_index for device in devices)


def test_the_order_is_the_same_on_every_host() -> None:
    devices = tpu_slice("v5e:4x4")
    other = list(reversed(devices))
    assert list(make_mesh(devices).devices.flat) == list(make_mesh(other).devices.flat)


def test_all_devices_are_the_default() -> None:
    assert list(make_mesh().devices.flat) == jax.devices()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -r requirements-tpu.txt",
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_made_slices_are_those_of_the_compiler(topology: str) -> None:
    mesh = topology_mesh(topology)
    made = {device.id: device for device in tpu_slice(topology)}
    assert mesh.size == len(made) == math.prod(mesh.devices.shape)
    for real in mesh.devices.flat:
        device = made[real.id]
        assert real.process_index == device.process_index
        assert tuple(real.coords) == device.coords
        assert real.device_kind == device.device_kind
        assert real.core_on_chip == device.core_on_chip
    assert hosts_of(mesh) == hosts_of(make_mesh(list(made.values())))
    one_each = make_mesh(one_of_each_host(list(mesh.devices.flat)))
    assert hosts_of(one_each) == sorted(set(hosts_of(mesh)))

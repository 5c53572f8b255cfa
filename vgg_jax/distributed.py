"""Makes one machine of several hosts and all of their devices.

Each host runs the same script. One mesh has all devices, and its axis "data" shares the
rows of a batch out over them.
"""

import atexit
import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import ipaddress
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state as jax_hosts
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.hosts import heartbeat
from vgg_jax.hosts.ending import end_process
from vgg_jax.hosts.launcher import (
    COORDINATOR,
    find_place,
    refuse_lonely,
    spans_machines,
)
from vgg_jax.hosts.stop_vote import StopVote

DATA = "data"  # the mesh's axis, but where `training.sharding` parts it in two

# The environment variable that says for how many seconds the hosts wait for one another
# at the start, and its default. It stands beside `COORDINATOR` in the environment, for
# it belongs to the cluster, not to a run, and is needed before anything else is read.
MEETING = "VGG_JAX_MEETING_SECONDS"
MEETING_SECONDS = 1800

FOR_EVER = 99 * 24 * 3600 * 1000  # milliseconds, for JAX wants a number

# JAX's own watch over the hosts aborts with a stack trace. It is the second net, behind
# that of `heartbeat`: a host tells JAX that it lives only every half of this time, so
# that the other half may be all that is left of it when a host dies.
JAX_HEARTBEAT_SECONDS = 2 * (heartbeat.SECONDS + 20)

# What JAX's errors begin with that have nothing to do with other hosts.
OWN_ERRORS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")

_watch: heartbeat.Heartbeat | None = None  # over the other hosts, if there are any
_stop_vote: StopVote | None = None  # likewise
_gatherings = itertools.count()


class LostHost(RuntimeError):
    """Another host is gone or did not come: to start all of them again may help."""


def join() -> None:
    """Meets the other hosts, if this one belongs to several.

    It must be called before JAX has started. JAX knows the hosts of a Cloud TPU pod;
    `launcher.find_place` reads the variables of other launchers, and those of JAX where
    there is none. Where `jax.distributed.initialize` was called before, by Ray for one,
    the hosts have met. Only host 0 goes on printing.

    Raises:
        ValueError: this is one process of several, and nothing says how they meet; the
            address is one that other machines cannot reach; or `MEETING` is no number.
        LostHost: the other hosts did not come.
    """
    if not jax.distributed.is_initialized() and not (_meet_on_tpu() or _meet()):
        return
    if several():
        _start_watch()
    print(f"host {jax.process_index()} of {jax.process_count()}", flush=True)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 open to the end


def _meet() -> bool:
    """Meets the other processes of a launcher; returns whether there are others."""
    place = find_place()
    if place is None:
        return False
    if place.address is not None:
        _refuse_loopback(place.address)
    _initialize(
        _meeting_seconds(os.environ),
        str(place.index),
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
    seconds = _meeting_seconds(os.environ)
    try:
        _initialize(seconds, "?")
    except ValueError:
        return False  # a TPU of one host, which nobody coordinates
    if jax.process_count() == 1:
        refuse_lonely()
    return True


def _initialize(seconds: int, host: str, **place: Any) -> None:
    """Has JAX meet the other hosts.

    Args:
        seconds: for how long it waits for them.
        host: the number of this one, for messages.
        place: arguments of `jax.distributed.initialize`.

    Raises:
        ValueError: JAX does not know how they meet.
        LostHost: the other hosts did not come.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _give_up_after(seconds, host):
            jax.distributed.initialize(
                **place,
                initialization_timeout=seconds + 60,  # it aborts; see `_give_up_after`
                heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=heartbeat.SECONDS,
            )
    except RuntimeError as error:
        raise LostHost(f"cannot meet the other hosts: {error}") from error
    if threading.current_thread() is threading.main_thread():
        # JAX has taken it, for a vote of its own in place of `StopVote`.
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _meeting_seconds(environment: Mapping[str, str]) -> int:
    """Reads for how long the hosts wait for one another.

    Raises:
        ValueError: it is not a whole number of at least 1.
    """
    text = environment.get(MEETING, str(MEETING_SECONDS))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected {MEETING} of at least 1 second, got {text!r}")
    return int(text)


@contextlib.contextmanager
def _give_up_after(seconds: int, host: str) -> Iterator[None]:
    """Ends the process with a line unless the block ends within this time.

    The block waits inside JAX, which nothing but the end of the process interrupts.
    """
    message = (
        f"waited {seconds} s for the other hosts, and not all of them came. Start the "
        f"command on all; {MEETING} says how long they wait"
    )
    timer = threading.Timer(seconds, heartbeat.end, (host, message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refuse_loopback(address: str) -> None:
    """Refuses a coordinator on the loopback where a launcher uses several machines.

    Raises:
        ValueError: no other machine could reach it.
    """
    if spans_machines() and _is_loopback(address):
        raise ValueError(
            f"expected in {COORDINATOR[0]} an address of host 0 that other machines "
            f"reach, got {address}, which is each machine's own; leave the "
            f"variables {', '.join(COORDINATOR)} out, or give host 0's address"
        )


def _is_loopback(address: str) -> bool:
    """Returns whether HOST:PORT stands for the machine that asks."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return host == "::1"


def _start_watch() -> None:
    """Starts to tell the other hosts that this one lives or is to stop, once."""
    global _watch, _stop_vote
    if _watch is None:
        place = (jax_hosts.client, jax_hosts.process_id, jax_hosts.num_processes)
        _stop_vote = StopVote(*place)
        _stop_vote.start()
        _watch = heartbeat.Heartbeat(*place, str(jax_hosts.coordinator_address))
        _watch.start()
        atexit.register(_end_watch, _stop_vote, _watch)


def _end_watch(vote: StopVote, watch: heartbeat.Heartbeat) -> None:
    """Takes leave of the other hosts as this process exits.

    Hosts that are done may be silent, but this one tells that it lives for as long as
    JAX waits for those that are not.
    """
    watch.stop()
    jax.distributed.shutdown()
    vote.end()
    watch.silence()


def _client() -> Any:
    """Returns JAX's client of the store that the hosts share."""
    return jax_hosts.client


def gather(value: Any) -> list[Any]:
    """Returns the value that each host gives, in their order.

    All hosts must call it equally often. It waits for as long as all of them live.

    Args:
        value: what JSON can hold.
    """
    if not several():
        return [value]
    client, key = _client(), f"vgg_jax/gather/{next(_gatherings)}"
    client.key_value_set(f"{key}/{jax_hosts.process_id}", json.dumps(value))
    return [
        json.loads(client.blocking_key_value_get(f"{key}/{host}", FOR_EVER))
        for host in range(jax_hosts.num_processes)
    ]


def agree(facts: Mapping[str, Any]) -> None:
    """Compares facts with those of the other hosts, and the version of the code.

    Args:
        facts: names and values, on which all that the hosts compute together depends.

    Raises:
        ValueError: they differ; the message has the facts, the hosts and their values.
    """
    if not several():
        return
    facts = {**facts, **code_version()}
    by_host = gather({name: str(value) for name, value in facts.items()})
    differing = []
    for name in sorted(set().union(*by_host)):
        hosts: dict[str, list[str]] = {}  # those of each value
        for host, theirs in enumerate(by_host):
            value = theirs.get(name, "nothing")
            hosts.setdefault(value, []).append(str(host))
        if len(hosts) > 1:
            differing.append(
                f"  {name}: "
                + "; ".join(
                    f"{_shortened(value)} on host {', '.join(those)}"
                    for value, those in hosts.items()
                )
            )
    if differing:
        raise ValueError(
            "the hosts do not agree:\n"
            + "\n".join(differing)
            + "\ngive all of them the same command, code and data"
        )


def _shortened(text: str) -> str:
    """Returns a text as it is, or the beginning of a long one and a digest."""
    if len(text) <= 60:
        return text
    return (
        f"{text[:40]}... ({hashlib.blake2b(text.encode(), digest_size=4).hexdigest()})"
    )


@functools.cache
def code_version() -> dict[str, str]:
    """Returns the versions of JAX and of this package, with a digest of its source."""
    digest = hashlib.blake2b(digest_size=8)
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return {
        "version of jax": jax.__version__,
        "version of jaxlib": importlib.metadata.version("jaxlib"),
        "source of vgg_jax": digest.hexdigest(),
    }


def wait_for_all() -> None:
    """Waits until all hosts have called it."""
    gather(None)


def reason_of_loss(error: BaseException) -> str | None:
    """Returns a line for an error that came from the loss of a host; else None."""
    if isinstance(error, LostHost):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and several():
        text = str(cause).partition("\n")[0]
        if isinstance(cause, jax.errors.JaxRuntimeError) and not text.startswith(
            OWN_ERRORS
        ):
            return heartbeat.lost(text)
        # Orbax's, where hosts meet in a save; asyncio has lost the error before it.
        if isinstance(cause, TimeoutError) and "barrier" in text:
            return heartbeat.lost(text)
        cause = cause.__cause__
    return None


def stop_all(number: int) -> None:
    """Tells all hosts to stop at one point for a signal; see `pass_stop_point`."""
    _start_watch()
    assert _stop_vote is not None
    _stop_vote.request(number)


def pass_stop_point() -> int | None:
    """Returns the signal for which all hosts stop here, or None.

    They must call it equally often.
    """
    _start_watch()
    assert _stop_vote is not None
    return _stop_vote.pass_point()


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
    return any(gather(is_so))


def from_first(numbers: Sequence[int]) -> list[int]:
    """Returns the numbers that the first host gives; all hosts must ask together."""
    return gather(list(numbers))[0]


def several() -> bool:
    """Whether there are other hosts."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def abandon(code: int) -> None:
    """Ends this process at once if other hosts wait for it; otherwise does nothing.

    The others would wait in the middle of a step, and a clean exit would wait for them.
    """
    if several():
        if _watch is not None:
            _watch.leave()
        end_process(code)


def _is_tpu_vm() -> bool:
    """Whether this machine has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a one-axis mesh of these devices, by default of all that all hosts have.

    The devices are in the order of their hosts, so that a host has neighboring rows of
    each batch, and an image's place in it does not depend on how the machine is wired.
    Unlike `jax.make_mesh` this searches no topology and so refuses none, neither GPUs
    of several nodes nor one chip of each host of a TPU slice. Nothing is slower for it
    where a collective is over all devices, whose rings XLA lays along the links by
    itself (docs/tpu_check.md). `vgg_jax.training.sharding` makes groups of neighbors.
    """
    devices = jax.devices() if devices is None else devices
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(in_order), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device of a mesh."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that shares an array's rows out over a mesh's devices."""
    return NamedSharding(mesh, P(mesh.axis_names))


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
    first = _first_place(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        share = len(rows) // local  # of a device
        shape = (share * mesh.size, *rows.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX's type allows for it
            start = (index[0].start or 0) - first * share
            return rows[start : start + share]

        # It takes less than half as long as `make_array_from_process_local_data`.
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(np.asarray(rows)) for name, rows in batch.items()}


@functools.cache
def _first_place(mesh: Mesh) -> int:
    """Returns the place in a mesh of this process's devices, which are neighbors."""
    return list(mesh.devices.flat).index(mesh.local_devices[0])

"""Two processes that train as one: one dies, hangs, is told to stop or disagrees."""

import contextlib
import dataclasses
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture import moments
from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, one_by_one, wrong
from tests.torture.laboratory import (
    TRAIN,
    Laboratory,
    Leftover,
    PreparationFailed,
    checkpoint_folders,
    compare,
    printed_step,
)
from tests.torture.processes import FAILURES, Ended, Started
from vgg_jax import cli, distributed

SECONDS = 60  # until the loss of one host has ended the other

STOPPED = 128 + signal.SIGTERM


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What happens to one of two hosts.

    Args:
        number: the signal that it gets, if any.
        disagrees: a setting that it alone has.
    """

    number: signal.Signals | None = None
    disagrees: str = ""


KINDS = {
    f"{name}, host {host}": (trouble, host)
    for host in (0, 1)
    for name, trouble in {
        "killed": Trouble(signal.SIGKILL),
        "hangs": Trouble(signal.SIGSTOP),
        "told to stop": Trouble(signal.SIGTERM),
        "another seed": Trouble(disagrees="--config.seed=1"),
        "another rate": Trouble(disagrees="--config.optimizer.learning_rate=0.02"),
        "another batch": Trouble(disagrees="--config.batch_size=16"),
        "other images": Trouble(disagrees="--config.data.validation_fraction=0.3"),
        "other saves": Trouble(disagrees="--config.checkpoint_every_steps=3"),
    }.items()
}


@contextlib.contextmanager
def two_hosts(
    laboratory: Laboratory, workdir: Path, disagrees: str = "", host: int = 0
) -> Iterator[list[Started]]:
    """Starts training as two processes that meet on the loopback."""
    with socket.socket() as free, contextlib.ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        processes = []
        for index in range(2):
            meeting = (address, "2", str(index))
            more = [disagrees] if disagrees and index == host else []
            process = laboratory.start(
                TRAIN,
                workdir,
                *more,
                environment=dict(zip(distributed.COORDINATOR, meeting, strict=True)),
            )
            processes.append(stack.enter_context(process))
        yield processes


def expected(laboratory: Laboratory) -> Leftover:
    """Returns what two hosts leave that nothing happens to."""
    if laboratory.left_by_hosts is None:
        workdir = laboratory.new_folder() / "run"
        with two_hosts(laboratory, workdir) as hosts:
            faults = [host.wait().fault([0]) for host in hosts]
        if any(faults):
            raise PreparationFailed(f"two hosts without any attack: {faults}")
        laboratory.left_by_hosts = laboratory.left(workdir)
    return laboratory.left_by_hosts


def run_case(laboratory: Laboratory, case: Case, kind: tuple[Trouble, int]) -> Outcome:
    """Troubles one of two hosts; then gives both the same command once more."""
    trouble, host = kind
    whole, rng, left = laboratory.whole(TRAIN), case.rng(), expected(laboratory)
    workdir = laboratory.new_folder() / "run"
    with two_hosts(laboratory, workdir, trouble.disagrees, host) as hosts:
        if trouble.disagrees:
            return judge_disagreement([one.wait(2 * SECONDS) for one in hosts])
        assert trouble.number is not None
        other = hosts[1 - host]
        moments.step(hosts[0], workdir, whole, rng)
        printed = printed_step(hosts[0].output)
        hosts[host].send(trouble.number)
        began = time.monotonic()
        ended = other.wait(SECONDS)
        seconds = time.monotonic() - began
        own = hosts[host].wait(SECONDS) if trouble.number == signal.SIGTERM else None
    saved = max((int(one.name) for one in checkpoint_folders(workdir)), default=0)
    outcome = _finish(laboratory, workdir, left)
    if outcome != RIGHT:
        return outcome
    if "finished at step" in ended.output:
        return RIGHT
    if own is not None:
        if saved < printed:
            return lost(f"stopped at step {printed} or later, saved only step {saved}")
        faults = [one.fault([STOPPED]) for one in (own, ended)]
        return wrong(f"{faults}") if any(faults) else RIGHT
    if fault := ended.fault([cli.RETRY]):
        return wrong(f"after {seconds:.0f} s: {fault}")
    return RIGHT


def judge_disagreement(ends: list[Ended]) -> Outcome:
    """Judges the ends of hosts whose settings differ."""
    steps = max(printed_step(ended.output) for ended in ends)
    if steps:
        return lost(f"trained {steps} steps with settings that differ")
    faults = [ended.fault(FAILURES) for ended in ends]
    return wrong(f"{faults}") if any(faults) else RIGHT


def _finish(laboratory: Laboratory, workdir: Path, left: Leftover) -> Outcome:
    """Gives both hosts the same command once more and compares what they leave."""
    with two_hosts(laboratory, workdir) as hosts:
        faults = [host.wait().fault([0]) for host in hosts]
    if any(faults):
        return lost(f"the same command does not go on: {faults}")
    return compare(laboratory.left(workdir), left)


ATTACK = Attack(
    name="hosts",
    does="Training as two processes that meet on the loopback, of which one is killed, "
    "hangs, gets SIGTERM or has another setting; then the same command once more",
    right=f"the other ends within {SECONDS} s with an error in a line, or saves and "
    "stops for SIGTERM; both refuse settings that differ before the first step; the "
    "result is that of two hosts that nothing happened to, to the bit",
    weight=3,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

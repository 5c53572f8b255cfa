"""This module reads from the environment which process of a run this one is.

A run on several hosts is several processes of one command. Whatever starts them, a
launcher such as `srun` or Kubernetes, tells each its number; most also tell how many
there are, and some where the first of them is.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence

# JAX's own variables: where process 0 listens (HOST:PORT), how many processes there
# are, and which one this is, from 0. They win over those of a launcher.
COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
ADDRESS, COUNT, INDEX = COORDINATOR

PORT = 8476  # of process 0, where a launcher names its host alone


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A program that starts the processes of a run, and the variables that it sets.

    Attributes:
        name: what its users call it.
        mark: a variable that all of its processes have, and no other.
        index: the variable with the number of a process, from 0.
        count: the variable with the number of processes, where there is one.
        hosts: the variable with the addresses of all hosts, one a line, the first of
            which is that of process 0, where there is one.
        asked_by_jax: a variable that is set where JAX finds out what is not told.
        package: the package that JAX needs for that, if it needs one.
        is_one_per_device: it may start several processes on a host, each with a device
            that JAX finds out.
        is_one_per_machine: it starts one process on each machine, or in each pod, whose
            loopback is its own as well.
    """

    name: str
    mark: str
    index: str
    count: str | None = None
    hosts: str | None = None
    asked_by_jax: str | None = None
    package: str | None = None
    is_one_per_device: bool = False
    is_one_per_machine: bool = False


LAUNCHERS = (
    # The script of `sbatch` has a number and a count too, but is no task of a step.
    Launcher(
        "Slurm",
        mark="SLURM_STEP_NODELIST",
        index="SLURM_PROCID",
        count="SLURM_NTASKS",
        asked_by_jax="SLURM_STEP_NODELIST",
        is_one_per_device=True,
    ),
    Launcher(
        "Open MPI",
        mark="OMPI_COMM_WORLD_RANK",
        index="OMPI_COMM_WORLD_RANK",
        count="OMPI_COMM_WORLD_SIZE",
        asked_by_jax="OMPI_MCA_orte_hnp_uri",  # as far as Open MPI 4
        is_one_per_device=True,
    ),
    Launcher("MPI", mark="PMI_RANK", index="PMI_RANK", count="PMI_SIZE"),
    Launcher(
        "SkyPilot",
        mark="SKYPILOT_NODE_RANK",
        index="SKYPILOT_NODE_RANK",
        count="SKYPILOT_NUM_NODES",
        hosts="SKYPILOT_NODE_IPS",
        is_one_per_machine=True,
    ),
    Launcher(
        "Kubernetes",
        mark="JOB_COMPLETION_INDEX",
        index="JOB_COMPLETION_INDEX",
        asked_by_jax="KUBERNETES_SERVICE_HOST",
        package="kubernetes",
        is_one_per_machine=True,
    ),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process in its run.

    Attributes:
        address: where process 0 listens, HOST:PORT; None where JAX asks the launcher.
        count: how many processes there are; None where JAX asks the launcher.
        index: which one this is, from 0.
        is_asked_by_jax: whether JAX asks the launcher for what is None here, and for
            the devices of this process.
    """

    address: str | None
    count: int | None
    index: int
    is_asked_by_jax: bool


def find_launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Finds what started this process, or None."""
    return next((each for each in LAUNCHERS if each.mark in environment), None)


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Finds the place of this process in its run; None for one that is alone.

    Raises:
        ValueError: this is one process of several, and nothing says how many there are
            or where the first of them is. Each would otherwise be a run of its own, and
            all in one folder.
    """
    launcher = find_launcher(environment)
    given = {name: environment[name] for name in COORDINATOR if environment.get(name)}
    told = given if launcher is None else _told_by(launcher, environment) | given
    if not told:
        return None
    count = _whole_number(COUNT, told)
    if count == 1 and INDEX not in given:
        return None
    index = _whole_number(INDEX, told)
    missing = [name for name in COORDINATOR if name not in told]
    can_ask = launcher is not None and _can_ask(launcher, environment)
    if index is None or (missing and not can_ask):
        raise ValueError(_explain_missing(missing, launcher))
    if count is not None and index >= count:
        raise ValueError(
            f"expected the number of this process, {INDEX}, from 0 to {count - 1}, for "
            f"{COUNT} is {count}; got {index}"
        )
    asks = can_ask and bool(missing or (launcher and launcher.is_one_per_device))
    return Place(told.get(ADDRESS), count, index, asks)


def refuse_lonely(environment: Mapping[str, str] = os.environ) -> None:
    """Checks that a process that met no other is not one of several.

    Raises:
        ValueError: its launcher gave it another number than 0.
    """
    launcher = find_launcher(environment)
    index = environment.get(launcher.index, "0") if launcher else "0"
    if launcher is not None and index != "0":
        raise ValueError(
            f"{launcher.name} started this process as number {index} "
            f"({launcher.index}), and it met no other; {_how_to_mend(COORDINATOR)}"
        )


def spans_machines(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether a launcher is known to have started this run on several machines.

    It is asked of a process that is one of several.
    """
    launcher = find_launcher(environment)
    if launcher is None:
        return False
    if launcher.is_one_per_machine and not environment.get(INDEX):
        return True  # with a number of their own they may be several in one pod
    tasks = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    return int(environment.get("SLURM_NNODES", "1")) > 1 or int(
        environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", tasks)
    ) < int(tasks)


def _told_by(launcher: Launcher, environment: Mapping[str, str]) -> dict[str, str]:
    """Gives what a launcher tells, under the names of JAX's variables."""
    told = {INDEX: environment.get(launcher.index, "")}
    if launcher.count is not None:
        told[COUNT] = environment.get(launcher.count, "")
    if launcher.hosts is not None and (hosts := environment.get(launcher.hosts)):
        told[ADDRESS] = f"{hosts.split()[0]}:{PORT}"
    return {name: value for name, value in told.items() if value}


def _can_ask(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    """Returns whether JAX can ask this launcher for what is not told."""
    return launcher.asked_by_jax in environment and (
        launcher.package is None
        or importlib.util.find_spec(launcher.package) is not None
    )


def _whole_number(name: str, told: Mapping[str, str]) -> int | None:
    text = told.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"expected a whole number in {name}, got {text!r}")
    return None if text is None else int(text)


def _explain_missing(missing: Sequence[str], launcher: Launcher | None) -> str:
    if launcher is None:
        wanted = " and ".join(missing)
        return f"expected {', '.join(COORDINATOR)} together; set {wanted}"
    return (
        f"{launcher.name} started this process as one of several ({launcher.index}) "
        f"and does not say how they meet; {_how_to_mend(missing)}"
    )


def _how_to_mend(missing: Sequence[str]) -> str:
    wanted = " and ".join(missing)
    return f"set {wanted}, as in deploy/, or {COUNT}=1 for a run that is alone"

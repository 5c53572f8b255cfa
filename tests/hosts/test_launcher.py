"""Which process of a run this is, by the variables of what started it."""

import pytest

from vgg_jax.hosts import launcher
from vgg_jax.hosts.launcher import Place, find_place, refuse_lonely, spans_machines

JAX = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "a[1-2]"}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
SKYPILOT = {
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6\n",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (JAX, Place("10.0.0.1:1234", 2, 1, is_asked_by_jax=False)),
        (SLURM, Place(None, 2, 1, is_asked_by_jax=True)),
        (OPEN_MPI_4, Place(None, 2, 1, is_asked_by_jax=True)),
        (SKYPILOT, Place("10.0.0.5:8476", 2, 1, is_asked_by_jax=False)),
        # JAX's variables win, and what they leave out the launcher says.
        (
            KUBERNETES | JAX | {"JAX_PROCESS_ID": ""},
            Place("10.0.0.1:1234", 2, 1, is_asked_by_jax=False),
        ),
        (
            MPICH | {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:1"},
            Place("10.0.0.9:1", 2, 1, is_asked_by_jax=False),
        ),
        # Under Slurm JAX has to learn which of the node's devices are this task's.
        (SLURM | JAX, Place("10.0.0.1:1234", 2, 1, is_asked_by_jax=True)),
    ],
)
def test_a_process_of_several_has_its_place(
    environment: dict[str, str], place: Place
) -> None:
    assert find_place(environment) == place


@pytest.mark.parametrize("started", [SLURM, OPEN_MPI_4, SKYPILOT, MPICH])
def test_a_single_process_of_a_launcher_is_alone(started: dict[str, str]) -> None:
    index, count = (
        next(name for name, value in started.items() if value == number)
        for number in ("1", "2")
    )
    assert find_place(started | {index: "0", count: "1"}) is None


def test_nobody_started_it() -> None:
    assert find_place({}) is None
    # `salloc` and the script of `sbatch` know of tasks that they are not.
    assert find_place({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    # A pod of a Deployment is alone too.
    assert find_place({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


@pytest.mark.parametrize(
    ("started", "missing"),
    [
        (KUBERNETES, "set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, "set JAX_COORDINATOR_ADDRESS"),
        (KUBERNETES | {"JAX_NUM_PROCESSES": "2"}, "set JAX_COORDINATOR_ADDRESS,"),
        (MPICH, "set JAX_COORDINATOR_ADDRESS,"),
        # Open MPI 5 does not say where the first process is.
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            "Open MPI .* set JAX_COORDINATOR_ADDRESS,",
        ),
        (SKYPILOT | {"SKYPILOT_NODE_IPS": ""}, "set JAX_COORDINATOR_ADDRESS,"),
    ],
)
def test_one_of_several_that_cannot_meet_is_refused(
    started: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=missing) as refused:
        find_place(started)
    assert "JAX_NUM_PROCESSES=1 for a run that is alone" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_jax_asks_kubernetes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: name)
    assert find_place(KUBERNETES) == Place(None, None, 1, is_asked_by_jax=True)
    # Told everything, it needs no rights in the cluster.
    told = KUBERNETES | JAX
    assert find_place(told) == Place("10.0.0.1:1234", 2, 1, is_asked_by_jax=False)


def test_pods_may_be_runs_of_their_own() -> None:
    assert find_place(KUBERNETES | {"JAX_NUM_PROCESSES": "1"}) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"JAX_PROCESS_ID": "2"}, "from 0 to 1, .* got 2"),
        ({"JAX_PROCESS_ID": "-1"}, "whole number in JAX_PROCESS_ID, got '-1'"),
        ({"JAX_NUM_PROCESSES": "two"}, "whole number in JAX_NUM_PROCESSES, got 'two'"),
        ({"JAX_NUM_PROCESSES": "1"}, "from 0 to 0, .* got 1"),
    ],
)
def test_impossible_numbers_are_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_place(JAX | wrong)


def test_a_process_that_met_nobody_has_the_number_0() -> None:
    refuse_lonely({})
    refuse_lonely(KUBERNETES | {"JOB_COMPLETION_INDEX": "0"})
    with pytest.raises(ValueError, match="Kubernetes started this process as number 1"):
        refuse_lonely(KUBERNETES)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (JAX, False),
        (SLURM | {"SLURM_NNODES": "2"}, True),
        (SLURM | {"SLURM_NNODES": "1"}, False),
        ({"SLURM_NNODES": "2"}, False),  # no task of a step
        (OPEN_MPI_4, False),  # all tasks may be here
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, False),
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        (KUBERNETES, True),
        (SKYPILOT, True),
        # Somebody gives numbers to processes that may be in one pod.
        (KUBERNETES | JAX, False),
        (MPICH, False),
    ],
)
def test_runs_on_several_machines_are_known(
    environment: dict[str, str], expected: bool
) -> None:
    assert spans_machines(environment) == expected

"""Slurm on this machine alone: a controller and two nodes that listen on the loopback.

Nothing outside of one temporary folder is written, no service of the system is started.
The nodes' names are addresses of the loopback, because JAX takes the first node's name
for the address of the coordinator.
"""

import contextlib
import getpass
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tests.small_run import wait

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("127.0.0.1", "127.0.0.2")
SECONDS = 120  # for a command, or for a node to change its state

# Intervals are short so that a test is: a node that is silent for 10 seconds is down,
# and a job that was put back into the queue waits for cred_expire.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/controller
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdTimeout=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
KillWait=30
JobRequeue=1
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
    "CPUs=2 RealMemory=2000\n"
)


class Slurm:
    """A cluster of two nodes; `with` starts it, and stops it whatever happens."""

    def __init__(self, port: int = 16817):
        self.port = port  # of the controller; the nodes have the next two

    def __enter__(self) -> "Slurm":
        self._temporary = tempfile.TemporaryDirectory(prefix="slurm-")
        self.folder = Path(self._temporary.name)
        self.folder.chmod(0o755)  # munged refuses a folder that others may write to
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, *command: str) -> str:
        """Runs a command of Slurm and returns what it printed."""
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start_node(self, name: str) -> None:
        """Starts the daemon of a node."""
        self.run("slurmd", "-N", name)

    def fail_node(self, name: str) -> None:
        """Ends a node as a power cut does: its daemon, and what runs there."""
        daemon = int((self.folder / f"slurmd.{name}.pid").read_text())
        _kill(daemon, signal.SIGKILL)
        for process, parent in list(self._processes_of(name)):
            _kill(parent, signal.SIGKILL)  # Slurm's own, which watches the task
            _kill(process, signal.SIGKILL)

    def kill_task(self, name: str) -> None:
        """Ends what runs on a node, as where memory ends; Slurm sees it."""
        for process, _ in list(self._processes_of(name)):
            _kill(process, signal.SIGKILL)

    def wait_for_nodes(self, count: int, state: str) -> None:
        """Waits until so many nodes are in a state, such as idle."""
        wait(
            lambda: self.run("sinfo", "-h", "-t", state, "-o", "%D") == str(count),
            SECONDS,
            f"{count} nodes that are {state}",
        )

    def _start(self) -> None:
        folder = self.folder
        for name in ("controller", "log", *NODES):
            (folder / name).mkdir()
        configuration = CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), controller_port=self.port
        )
        for number, name in enumerate(NODES, 1):
            configuration += NODE.format(name=name, port=self.port + number)
        (folder / "slurm.conf").write_text(configuration)
        self.run("mungekey", "--create", f"--keyfile={folder}/munge.key")
        self.run(
            "munged",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid",
            f"--seed-file={folder}/munge.seed",
            f"--log-file={folder}/log/munged.log",
        )
        self.run("slurmctld", "-c")
        for name in NODES:
            self.start_node(name)
        self.wait_for_nodes(2, "idle")

    def _stop(self) -> None:
        """Ends jobs, nodes, the controller and munged, in this order."""
        for name in NODES:
            for process, _ in list(self._processes_of(name)):
                _kill(process, signal.SIGKILL)
        files = [f"slurmd.{name}.pid" for name in NODES] + [
            "slurmctld.pid",
            "munged.pid",
        ]
        numbers = [
            int(text)
            for name in files
            if (path := self.folder / name).is_file() and (text := path.read_text())
        ]
        for number in numbers:
            _kill(number, signal.SIGTERM)
        try:
            wait(lambda: not any(map(_is_alive, numbers)), 10, "the daemons' end")
        except TimeoutError:
            for number in numbers:
                _kill(number, signal.SIGKILL)
        self._temporary.cleanup()

    def _processes_of(self, name: str) -> Iterator[tuple[int, int]]:
        """Gives number and parent of each process that this cluster runs on a node."""
        wanted = {
            f"SLURM_CONF={self.folder / 'slurm.conf'}".encode(),
            f"SLURMD_NODENAME={name}".encode(),
        }
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = set((path / "environ").read_bytes().split(b"\0"))
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has ended
            if wanted <= variables:
                yield int(path.name), parent


def _kill(number: int, kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(number, kind)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True

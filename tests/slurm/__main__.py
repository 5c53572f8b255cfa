"""Trains under Slurm, on this machine alone, through every way in which it stops a job.

  python -m tests.slurm [--keep DIR]

One job, deploy/slurm/train.sbatch as it is, trains a small network on Fashion-MNIST in
two tasks. It is sent SIGTERM, loses a task and a node, and reaches its time limit; each
time it comes back by itself. In the end its checkpoint is compared with that of one
process which nobody stopped. The exit code is 0 if all went as it should.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.cluster import NODES, PROGRAMS, Slurm
from tests.small_run import (
    FLAGS,
    ROOT,
    SAVED_EVERY,
    WITHOUT_END,
    report_difference,
    scenario,
    train_alone,
    wait,
    write_configuration,
)
from vgg_jax.console import format_columns, format_seconds
from vgg_jax.training.workdir.facts import is_finished

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
HEADINGS = (
    "what stopped the job",
    "exit code",
    "last step",
    "goes on from",
    "trains again after",
)
SECONDS = 600  # for any one thing that the job does
STEPS_BETWEEN = 30  # that the job trains before it is stopped again


def install() -> None:
    """Installs Debian's Slurm if it is not there.

    Raises:
        SystemExit: it is not there and cannot be installed; one line says why.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    os.environ["PATH"] = path
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"error: Slurm is not installed: as root, apt-get install {PACKAGES}")
    command = ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit("error: Slurm is not installed, and apt-get could not install it")


class Job:
    """A training under Slurm, seen by its log."""

    def __init__(self, slurm: Slurm, folder: Path):
        self.slurm = slurm
        self.log = folder / "job.log"
        self.configuration = folder / "job.py"
        self.workdir = folder / "job"
        write_configuration(self.configuration, WITHOUT_END)
        slurm.environment |= {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}
        self.number = slurm.run(
            *("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={self.log}"),
            *("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"),
            *("--gpus-per-node=0", "--time=60", "--signal=TERM@5"),
            str(ROOT / "deploy/slurm/train.sbatch"),
            *("--config", str(self.configuration), "--workdir", str(self.workdir)),
            *FLAGS,
        )

    def text(self) -> str:
        """Returns what the job has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def starts(self) -> list[int]:
        """Returns the step from which each start of the job has gone on."""
        found = re.findall(
            r"parameters;.*; (from the start|step [\d,]+) to ", self.text()
        )
        return [int(re.sub(r"\D", "", words) or 0) for words in found]

    def step(self) -> int:
        """Returns the last step that the job has printed."""
        found = re.findall(r"^step ([\d,]+)/", self.text(), re.MULTILINE)
        return int(found[-1].replace(",", "")) if found else 0

    def shown(self, name: str) -> str:
        """Returns what Slurm shows of the job, such as its JobState."""
        shown = self.slurm.run("scontrol", "show", "job", "-o", self.number)
        return re.findall(rf"\b{name}=(\S+)", shown)[0]

    def seconds(self) -> int:
        """Returns how long the job has run since its last start."""
        hours, minutes, seconds = map(int, self.shown("RunTime").split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def wait_for_steps(self, count: int) -> None:
        """Waits until the job has trained so many steps since its last start."""
        target = self.starts()[-1] + count
        wait(lambda: self.step() >= target, SECONDS, f"step {target} of the job")

    def wait_for_start(self, number: int) -> None:
        """Waits until the job has started so often."""
        wait(
            lambda: len(self.starts()) >= number, SECONDS, f"start {number} of the job"
        )


def term(job: Job) -> None:
    """The tasks get SIGTERM from outside."""
    job.slurm.run("scancel", "--signal=TERM", job.number)


def kill(job: Job) -> None:
    """The second task is killed, as where memory ends."""
    job.slurm.kill_task(NODES[1])


def fail(job: Job) -> None:
    """The second node is gone, with all that ran there; later it is back."""
    job.slurm.fail_node(NODES[1])
    job.slurm.wait_for_nodes(1, "down")
    job.slurm.start_node(NODES[1])


def limit(job: Job) -> None:
    """The time is over: Slurm itself sends SIGTERM, up to 35 seconds before."""
    wait(lambda: 15 < job.seconds() % 60 < 30, 90, "a time between two minutes")
    minutes = job.seconds() // 60 + 1
    job.slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    wait(lambda: job.shown("JobState") != "RUNNING", 90, "the end of the job's time")
    job.slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")


WAYS = {
    "SIGTERM to the tasks": term,
    "SIGKILL to a task": kill,
    "a node fails": fail,
    "the time limit": limit,
}


def run(folder: Path) -> int:
    """Runs the job, and then the same training alone; returns the exit code.

    Raises:
        TimeoutError: something did not happen in its time.
        RuntimeError: a command or the training alone failed.
        AssertionError: the job did not go on as it should.
    """
    install()
    with Slurm() as slurm:
        print("Slurm is up; two tasks train", flush=True)
        job = Job(slurm, folder)
        rows = [stop_and_wait(job, number, way) for number, way in enumerate(WAYS, 1)]
        wait(lambda: job.shown("JobState") == "COMPLETED", SECONDS, "the job's end")
    assert is_finished(job.workdir), "the job has not finished its training"
    print("one process trains as many steps", flush=True)
    alone = folder / "alone"
    train_alone(alone, job.configuration)
    print()
    print(format_columns(HEADINGS, rows))
    print()
    return report_difference(job.workdir, alone)


def stop_and_wait(job: Job, number: int, way: str) -> tuple[str, ...]:
    """Stops the job in one way, and waits until it trains again; returns a row."""
    job.wait_for_start(number)
    job.wait_for_steps(STEPS_BETWEEN)
    seen, began = len(job.text()), time.monotonic()
    WAYS[way](job)
    stopped = job.step()
    if number == len(WAYS):
        write_configuration(job.configuration, stopped + STEPS_BETWEEN)
    job.wait_for_start(number + 1)
    seconds = time.monotonic() - began
    step = job.starts()[number]
    text = job.text()[seen:]
    codes = re.findall(r"^exit code (\d+): back", text, re.MULTILINE)
    if saved := re.findall(r"stopped at step (\d+), saved", text):
        assert step == int(saved[0]), f"stopped at {saved[0]}, went on from {step}"
    else:
        lost = f"step {stopped} was printed, and the job went on from {step}"
        assert stopped - 2 * SAVED_EVERY <= step <= stopped, lost
    last = saved[0] if saved else f"about {stopped}"
    print(f"{way}: trains again after {format_seconds(seconds)}", flush=True)
    return way, *(codes or ["by Slurm"]), last, str(step), format_seconds(seconds)


if __name__ == "__main__":
    sys.exit(scenario("tests.slurm", __doc__, run, "job.log"))

"""Trains under Slurm, on this machine alone, through every way in which it stops a job.

  python -m tests.slurm [--keep DIR]

One job, deploy/slurm/train.sbatch as it is, trains a small network on Fashion-MNIST in
two tasks. It is sent SIGTERM, loses a node, and reaches its time limit; each time it
comes back by itself. In the end its checkpoint is compared with that of one process which
nobody stopped. The exit code is 0 if all went as it should.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.slurm.cluster import NODES, PROGRAMS, Slurm, wait
from vgg_jax.config import DataConfig
from vgg_jax.console import format_columns, format_seconds
from vgg_jax.distributed import make_mesh
from vgg_jax.training.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.program import build_program
from vgg_jax.training.workdir import is_finished, read_config

ROOT = Path(__file__).parents[2]
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
HEADINGS = (
    "what stopped the job",
    "exit code",
    "last step",
    "goes on from",
    "trains again after",
)
TOLERANCE = 1e-4  # of the largest value of a layer
SECONDS = 600  # for any one thing that the job does

SAVED_EVERY = 20  # steps
STEPS_BETWEEN = 30  # that the job trains before it is stopped again
STEPS_PER_EPOCH = 59_700 / 64
WITHOUT_END = 1_000_000  # steps
# `num_epochs` may change when a run goes on: the job's is without end until it has been
# stopped in every way.
CONFIGURATION = """\
import configs.fashion_mnist_vgg
from vgg_jax.config import Config


def get_config() -> Config:
    config = configs.fashion_mnist_vgg.get_config()
    config.num_epochs = {epochs}
    return config
"""
# The learning rate is small because two hosts add up in another order than one process,
# and large steps make more of that rounding.
DATA_DIR = os.environ.get("VGG_JAX_TEST_DATA", DataConfig.data_dir)
FLAGS = (
    f"--config.data.data_dir={DATA_DIR}",
    "--config.data.validation_fraction=0.005",
    "--config.model.name=vgg11",
    "--config.model.width=0.05",
    "--config.model.dropout=0.5",
    "--config.optimizer.learning_rate=0.002",
    "--config.batch_size=64",
    f"--config.checkpoint_every_steps={SAVED_EVERY}",
    "--config.log_every_steps=5",
)


def main() -> int:
    """Runs the scenario; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.slurm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--keep", type=Path, help="keep the logs and runs in this folder"
    )
    values = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory(prefix="vgg_jax-slurm-") as temporary:
        folder = (values.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return run(folder)
        except (RuntimeError, TimeoutError, AssertionError) as error:
            print(f"error: {error}", file=sys.stderr)
            if (folder / "job.log").exists():
                print((folder / "job.log").read_text()[-4000:], file=sys.stderr)
            return 1


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


def write_configuration(path: Path, steps: int) -> None:
    """Writes the configuration of a run of so many steps."""
    epochs = (steps - 0.1) / STEPS_PER_EPOCH
    path.write_text(CONFIGURATION.format(epochs=epochs))


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


def fail(job: Job) -> None:
    """The second node is gone, and comes back after 15 seconds."""
    job.slurm.fail_node(NODES[1])
    time.sleep(15)
    job.slurm.start_node(NODES[1])


def limit(job: Job) -> None:
    """The time is over: Slurm itself sends SIGTERM, up to 35 seconds before."""
    wait(lambda: 15 < job.seconds() % 60 < 30, 90, "a time between two minutes")
    minutes = job.seconds() // 60 + 1
    job.slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    wait(lambda: job.shown("JobState") != "RUNNING", 90, "the end of the job's time")
    job.slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")


WAYS = {"SIGTERM to the tasks": term, "a node fails": fail, "the time limit": limit}


def run(folder: Path) -> int:
    """Runs the job, and then the same training alone; returns the exit code.

    Raises:
        TimeoutError: something did not happen in its time.
        RuntimeError: a command or the training alone failed.
        AssertionError: the job did not go on as it should.
    """
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


def report_difference(ours: Path, theirs: Path) -> int:
    """Compares the last checkpoints of two runs; returns the exit code."""
    [*_, step], [*_, other] = saved_steps(ours), saved_steps(theirs)
    assert step == other, f"the job ended at step {step}, the other run at {other}"
    parameters = [final_parameters(workdir, step) for workdir in (ours, theirs)]
    pairs = list(zip(*map(jax.tree.leaves, parameters), strict=True))
    if all(np.array_equal(one, two) for one, two in pairs):
        print(f"step {step}: the parameters are equal to the bit")
        return 0
    largest = max(np.abs(one - two).max() / np.abs(two).max() for one, two in pairs)
    print(f"step {step}: the parameters differ by {largest:.1e} of a layer's largest")
    return int(largest > TOLERANCE)


def final_parameters(workdir: Path, step: int) -> Any:
    """Reads the parameters of a checkpoint."""
    config = read_config(workdir)
    state = build_program(config, make_mesh()).state
    metric = f"validation_{config.optimizer.metric}"
    with Checkpoints(workdir, metric, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(state, step)[0].params)


def train_alone(workdir: Path, configuration: Path) -> None:
    """Trains without Slurm and without a stop, on two virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [
        *(sys.executable, "train.py", "--config", str(configuration)),
        *("--workdir", str(workdir), *FLAGS),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


if __name__ == "__main__":
    sys.exit(main())

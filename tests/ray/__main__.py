"""Trains under Ray, on this machine alone, and kills a worker.

  python -m tests.ray [--keep DIR]

deploy/ray/train.py trains a small network on Fashion-MNIST with two workers on CPU.
One of them is killed; Ray starts both anew, and the run goes on. In the end its
checkpoint is compared with that of one process which nobody stopped. The exit code is 0
if all went as it should.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.small_run import (
    FLAGS,
    ROOT,
    SAVED_EVERY,
    report_difference,
    scenario,
    train_alone,
    wait,
    write_configuration,
)
from vgg_jax.console import format_columns, format_seconds
from vgg_jax.training.workdir.checkpoint import saved_steps
from vgg_jax.training.workdir.facts import is_finished

SECONDS = 600  # for any one thing that the run does
STEPS = 12 * SAVED_EVERY
KILLED_AFTER = 2 * SAVED_EVERY  # steps
HEADINGS = ("what stopped the run", "goes on from", "trains again after")


def run(folder: Path) -> int:
    """Runs the training with Ray, and then alone; returns the exit code.

    Raises:
        TimeoutError: something did not happen in its time.
        RuntimeError: a training failed.
        AssertionError: the run did not go on as it should.
    """
    configuration, log, workdir = folder / "run.py", folder / "ray.log", folder / "run"
    write_configuration(configuration, STEPS)
    command = [
        *(sys.executable, "deploy/ray/train.py", "--num_workers=2"),
        *("--config", str(configuration), "--workdir", str(workdir), *FLAGS),
    ]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as output:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        row = kill_worker(driver, log, workdir)
        code = driver.wait(SECONDS)
    finally:
        driver.terminate()  # Ray's own processes end with it
        driver.wait(60)
    assert code == 0, f"deploy/ray/train.py ended with {code}"
    assert is_finished(workdir), "the run has not finished its training"
    print("one process trains as many steps", flush=True)
    train_alone(folder / "alone", configuration)
    print()
    print(format_columns(HEADINGS, [row]))
    print()
    return report_difference(workdir, folder / "alone")


def kill_worker(
    driver: "subprocess.Popen[bytes]", log: Path, workdir: Path
) -> tuple[str, ...]:
    """Kills one worker, and waits until both train again; returns a row."""

    def starts() -> list[str]:
        assert driver.poll() is None, f"Ray ended with {driver.returncode}"
        pattern = r"parameters;.*; (?:from the start|step ([\d,]+)) to "
        return re.findall(pattern, log.read_text())

    def is_under_way() -> bool:
        starts()
        return max(saved_steps(workdir), default=0) >= KILLED_AFTER

    wait(is_under_way, SECONDS, f"a checkpoint of step {KILLED_AFTER}")
    before = len(starts())
    workers = worker_processes(driver.pid)
    assert len(workers) == 2, f"expected two workers of Ray, got {workers}"
    began = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    wait(lambda: len(starts()) > before, SECONDS, "another start")
    seconds = format_seconds(time.monotonic() - began)
    step = starts()[-1].replace(",", "")
    assert step and int(step) >= KILLED_AFTER, f"it went on from {step or 'the start'}"
    print(f"SIGKILL to a worker: trains again after {seconds}", flush=True)
    return "SIGKILL to a worker", step, seconds


def worker_processes(driver: int) -> list[int]:
    """Returns the numbers of the processes of Ray's workers that train."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended
        if name.startswith("ray::") and "TrainWorker" in name:
            numbers.append(int(path.name))
    return sorted(numbers)


if __name__ == "__main__":
    sys.exit(scenario("tests.ray", __doc__, run, "ray.log"))

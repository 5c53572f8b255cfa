"""Trains and saves for a while and prints what the process takes: it should not grow.

python -m benchmarks.soak [--minutes 30] [--workers 0]

A small network trains on pictures of noise and saves every 5 steps, under the usual
limit of 1,024 open files. Each line of the table is a moment: minutes since the start,
training steps, checkpoints saved, and of train.py with its worker processes the
resident memory, the threads and the open descriptors.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
OPEN_FILES = 1024
STEPS_PER_SAVE = 5
LINES = 12  # of the table


def draw_noise(folder: Path) -> None:
    """Writes two classes of pictures of noise, to train on and to test."""
    rng = np.random.default_rng(0)
    for part, count in {"train": 64, "test": 4}.items():
        for label in range(2):
            name = folder / part / f"class{label}"
            name.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 200, (32, 36), np.uint8) + 50 * label
                cv2.imwrite(str(name / f"{number}.png"), picture)


def command(pictures: Path, workdir: Path, workers: int) -> list[str]:
    """Returns the command of a training without end."""
    return [
        *(sys.executable, "train.py", "--config", "configs/fashion_mnist_vgg.py"),
        f"--workdir={workdir}",
        "--config.data.dataset=folder",
        f"--config.data.data_dir={pictures}",
        "--config.data.validation_fraction=0.25",
        f"--config.data.num_workers={workers}",
        "--config.model.name=vgg11",
        "--config.model.num_classes=2",
        "--config.model.width=0.05",
        "--config.evaluation.batch_size=8",
        "--config.batch_size=8",
        "--config.num_epochs=10000",
        "--config.optimizer.schedule=step",
        "--config.optimizer.learning_rate=0.0001",
        f"--config.checkpoint_every_steps={STEPS_PER_SAVE}",
        f"--config.log_every_steps={STEPS_PER_SAVE}",
    ]


def descendants(pid: int) -> Iterator[int]:
    """Gives a process and those that it started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def measure(pid: int) -> tuple[int, int, int]:
    """Returns resident bytes, threads and descriptors of a process and its workers."""
    memory = threads = descriptors = 0
    for process in descendants(pid):
        folder = Path(f"/proc/{process}")
        pages = int((folder / "statm").read_text().split()[1])
        memory += pages * os.sysconf("SC_PAGE_SIZE")
        threads += len(list((folder / "task").iterdir()))
        descriptors += len(list((folder / "fd").iterdir()))
    return memory, threads, descriptors


def last_step(metrics: Path) -> int:
    """Returns the step of the last whole line of a metrics.jsonl; 0 without any."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def limit_open_files() -> None:
    """Sets the limit of open files that most systems have."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=0)
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        pictures, workdir = Path(folder) / "pictures", Path(folder) / "run"
        draw_noise(pictures)
        with subprocess.Popen(
            command(pictures, workdir, values.workers),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            preexec_fn=limit_open_files,
        ) as process:
            try:
                watch(process, workdir / "metrics.jsonl", values.minutes)
            finally:
                process.terminate()


def watch(process: subprocess.Popen[bytes], metrics: Path, minutes: float) -> None:
    """Prints a line now and then while a training goes on.

    Raises:
        SystemExit: it has ended; its error is on stderr.
    """
    while not last_step(metrics):
        _wait(process, 1.0)
    print("| minutes | steps | saves | memory, MiB | threads | descriptors |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    start = time.monotonic()
    for line in range(LINES + 1):
        _wait(process, start + 60 * minutes * line / LINES - time.monotonic())
        step = last_step(metrics)
        memory, threads, descriptors = measure(process.pid)
        print(
            f"| {(time.monotonic() - start) / 60:.1f} | {step:,} "
            f"| {step // STEPS_PER_SAVE:,} | {memory / 2**20:,.0f} | {threads} "
            f"| {descriptors} |",
            flush=True,
        )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits so long, unless the process ends."""
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return
    sys.exit(f"train.py ended with exit code {process.returncode}; its error is above")


if __name__ == "__main__":
    main()

"""Disks that are full, read-only or gone: told in a line, nothing lost."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.torture import moments
from tests.torture.attack import RIGHT, Attack, Case, Outcome, one_by_one, wrong
from tests.torture.laboratory import EVAL, TRAIN, Laboratory
from tests.torture.processes import FAILURES, Ended, Started

# What the run needs is less, so that all sizes up to it make the disk full somewhere.
ROOM = 1_200_000


@dataclasses.dataclass
class Disk:
    """A disk of its own for the folder of a run, in memory.

    Args:
        folder: where it is mounted.
    """

    folder: Path

    def remount(self, options: str) -> None:
        """Changes its size, or whether it can be written to."""
        _mount("-o", f"remount,{options}", str(self.folder))


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Disk]:
    """Mounts a disk of so many bytes for the block."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "torture", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What one kind of trouble has to work with.

    Args:
        laboratory, rng: of the case.
        script: the command.
        disk: where the folder of the run is.
        workdir: the folder of the run.
    """

    laboratory: Laboratory
    rng: np.random.Generator
    script: str
    disk: Disk
    workdir: Path

    def start(self, *more: str, before: tuple[str, ...] = ()) -> Started:
        """Starts the command."""
        return self.laboratory.start(self.script, self.workdir, *more, before=before)

    def wait_for_a_moment(self, started: Started) -> None:
        """Waits for any moment of the run."""
        whole = self.laboratory.whole(self.script)
        moments.any_second(started, self.workdir, whole, self.rng)


def small_disk(attempt: Attempt) -> Ended:
    """The disk is too small from the start; later it is larger."""
    used = sum(
        file.stat().st_size for file in attempt.workdir.rglob("*") if file.is_file()
    )
    attempt.disk.remount(f"size={used + int(attempt.rng.integers(0, ROOM))}")
    with attempt.start() as started:
        ended = started.wait()
    attempt.disk.remount("size=64m")
    return ended


def filled_disk(attempt: Attempt) -> Ended:
    """Somebody else fills the disk while the command runs, and clears it later."""
    ballast = attempt.disk.folder / "ballast"
    with attempt.start() as started:
        attempt.wait_for_a_moment(started)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        ended = started.wait()
    ballast.unlink()
    return ended


def file_size_limit(attempt: Attempt) -> Ended:
    """No file may grow past a limit, as with a quota."""
    size = int(attempt.rng.integers(0, 40_000))
    with attempt.start(before=("prlimit", f"--fsize={size}")) as started:
        return started.wait()


def few_descriptors(attempt: Attempt) -> Ended:
    """The process may open few files at once."""
    number = int(attempt.rng.integers(8, 64))
    with attempt.start(before=("prlimit", f"--nofile={number}")) as started:
        return started.wait()


def read_only(attempt: Attempt) -> Ended:
    """The disk cannot be written to; later it can."""
    attempt.disk.remount("ro")
    with attempt.start() as started:
        ended = started.wait()
    attempt.disk.remount("rw")
    return ended


def moved_away(attempt: Attempt) -> Ended:
    """The folder of the run is moved away while the command runs, and back later."""
    aside = attempt.workdir.with_name("aside")
    with attempt.start() as started:
        attempt.wait_for_a_moment(started)
        while not started.has_ended:
            with contextlib.suppress(FileNotFoundError):
                os.rename(attempt.workdir, aside)
                break
        ended = started.wait()
    if aside.exists():
        shutil.rmtree(attempt.workdir, ignore_errors=True)
        os.rename(aside, attempt.workdir)
    return ended


def removed(attempt: Attempt) -> Ended:
    """The folder of the run is removed while the command runs."""
    with attempt.start() as started:
        attempt.wait_for_a_moment(started)
        shutil.rmtree(attempt.workdir, ignore_errors=True)
        ended = started.wait()
    shutil.rmtree(attempt.workdir, ignore_errors=True)
    if attempt.script == EVAL:
        shutil.copytree(attempt.laboratory.trained[0], attempt.workdir)
    return ended


TROUBLES: dict[str, Callable[[Attempt], Ended]] = {
    "a disk that is too small": small_disk,
    "a disk that somebody fills": filled_disk,
    "a limit on the size of a file": file_size_limit,
    "few file descriptors": few_descriptors,
    "a disk that is read-only": read_only,
    "a folder that is moved away": moved_away,
    "a folder that is removed": removed,
}

KINDS = {
    f"{trouble}, {script}": (trouble, script)
    for trouble in TROUBLES
    for script in (TRAIN, EVAL)
}


def run_case(laboratory: Laboratory, case: Case, kind: tuple[str, str]) -> Outcome:
    """Runs a command in trouble, and once more when the trouble is over."""
    trouble, script = kind
    with mounted(laboratory.new_folder() / "disk", 2**26) as disk:
        workdir = disk.folder / "run"
        if script == EVAL:
            shutil.copytree(laboratory.trained[0], workdir)
        attempt = Attempt(laboratory, case.rng(), script, disk, workdir)
        ended = TROUBLES[trouble](attempt)
        fault = ended.fault([0, *FAILURES])
        outcome = laboratory.finish(script, workdir)
    if outcome != RIGHT:
        return outcome
    if fault:
        return wrong(fault)
    is_gone = TROUBLES[trouble] in (moved_away, removed)
    if ended.code and is_gone and str(workdir) not in ended.output:
        return wrong(f"the message does not name {workdir}: {ended.last_line}")
    return RIGHT


ATTACK = Attack(
    name="disks",
    does="A disk that is full from the start or fills up, a limit on the size of files "
    "or on their number, a read-only disk, and a folder that is moved or removed while "
    "train.py or eval.py runs; then the same command once more, without the trouble",
    right="done, or the exit code of an error and a line that says why, without a "
    "traceback; afterwards the result of a run without trouble, to the bit",
    weight=3,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

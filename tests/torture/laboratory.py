"""The small run that is attacked: its pictures, its commands and what it leaves."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from tests.torture.attack import RIGHT, Outcome, lost
from tests.torture.processes import PATIENCE, Ended, Started

ROOT = Path(__file__).parents[2]
CLASSES = ("bar", "box", "disc")
PICTURES = {"train": 24, "test": 4}  # of each class
SIDE = 500  # pixels: large enough that a step takes longer than its arithmetic

TRAIN, EVAL = "train.py", "eval.py"


@dataclasses.dataclass(frozen=True)
class Leftover:
    """What a run leaves that must not depend on what happened to it.

    Args:
        arrays: a digest of the arrays of each checkpoint, by its step, and of each
            file of posteriors, by its name.
        metrics: the lines of metrics.jsonl without speeds.
        results: the rows of eval.json.
    """

    arrays: dict[str, str]
    metrics: list[dict[str, float]]
    results: list[Any]


@dataclasses.dataclass(frozen=True)
class Whole:
    """A command that nobody interrupted.

    Args:
        left: what it left.
        start_seconds: how long it took to its first step, or to the end without any.
        seconds: how long it took in all.
        steps: its number of training steps.
        validated: the steps after which it validated.
    """

    left: Leftover
    start_seconds: float
    seconds: float
    steps: int
    validated: tuple[int, ...]


class PreparationFailed(RuntimeError):
    """A command failed though nobody attacked it."""


class Laboratory:
    """A folder for all that the attacks need and leave, and the commands they run."""

    root = ROOT

    def __init__(self, folder: Path):
        self.folder = folder
        self.expected: dict[tuple[str, str | None], str] = {}  # see `damage`
        self.left_by_hosts: Leftover | None = None  # see `hosts`
        self._shapes: Any = None  # of the arrays of a checkpoint
        self._number = 0
        # Programs are compiled once, and apart from the user's own: a process that is
        # killed may leave half of one.
        self.environment: Mapping[str, str] = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }

    def new_folder(self) -> Path:
        """Makes an empty folder for a case."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @functools.cached_property
    def pictures(self) -> Path:
        """The folder of the pictures: bars, boxes and discs in noise."""
        root = self.folder / "pictures"
        if not root.exists():
            draw_pictures(root)
        return root

    def arguments(self, script: str, workdir: Path, *more: str) -> list[str]:
        """Returns the arguments of train.py or eval.py, without `python SCRIPT`."""
        protocols = ["--protocol=center", "--protocol=dense"]
        return [
            *("--config", "configs/fashion_mnist_vgg.py", f"--workdir={workdir}"),
            "--config.data.dataset=folder",
            "--config.optimizer.schedule=plateau",
            "--config.optimizer.warmup_epochs=0",
            f"--config.data.data_dir={self.pictures}",
            "--config.data.validation_fraction=0.25",
            "--config.model.num_classes=3",
            "--config.model.name=vgg11",
            "--config.model.width=0.02",
            "--config.optimizer.learning_rate=0.01",
            "--config.evaluation.batch_size=16",
            "--config.evaluation.scales=32",
            "--config.batch_size=8",
            "--config.num_epochs=4",
            "--config.validate_every_epochs=1",
            "--config.checkpoint_every_steps=4",
            "--config.log_every_steps=1",
            *(protocols if script == EVAL else []),
            *more,
        ]

    def command(self, script: str, workdir: Path, *more: str) -> list[str]:
        """Returns the command line of train.py or eval.py."""
        return [sys.executable, script, *self.arguments(script, workdir, *more)]

    def start(
        self,
        script: str,
        workdir: Path,
        *more: str,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Started:
        """Starts a command; `before` is a command that runs it, such as prlimit."""
        self._number += 1
        return Started(
            [*before, *self.command(script, workdir, *more)],
            self.folder / f"{self._number}.log",
            {**self.environment, **(environment or {})},
            self.root,
        )

    def run(self, script: str, workdir: Path, *more: str) -> Ended:
        """Runs a command to its end."""
        with self.start(script, workdir, *more) as started:
            return started.wait()

    def left(self, workdir: Path) -> Leftover:
        """Reads what a run left, not by this library's own functions.

        Raises:
            Exception: whatever a damaged file makes Orbax, NumPy or JSON raise.
        """
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        metrics = [json.loads(line) for line in lines]
        for row in metrics:
            for clocked in ("images_per_second", "waiting_for_images"):
                row.pop(clocked, None)
        arrays = {one.name: self.digest(one) for one in checkpoint_folders(workdir)}
        posteriors, results = self.left_by_evaluation(workdir)
        return Leftover({**arrays, **posteriors}, metrics, results)

    def left_by_evaluation(self, workdir: Path) -> tuple[dict[str, str], Any]:
        """Reads what eval.py left: digests of all posteriors, and the results."""
        posteriors = {}
        for file in (workdir / "predictions").glob("*.npz"):
            with np.load(file) as stored:
                posteriors[file.name] = _short_digest(stored["posteriors"])
        path = workdir / "eval.json"
        results = json.loads(path.read_text())["results"] if path.exists() else []
        return posteriors, results

    def digest(self, checkpoint: Path) -> str:
        """Digests every array of a checkpoint, and what is kept beside them."""
        digest = hashlib.blake2b(digest_size=8)
        found: Any = ocp.checkpointables_metadata(checkpoint)
        custom = found.custom_metadata or {}
        digest.update(repr(sorted(custom.items())).encode())
        if self._shapes is None:
            # Those of two hosts lay on devices that this process has not.
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            self._shapes = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
                {
                    name: tree
                    for name, tree in found.metadata.items()
                    if name in ("params", "opt_state", "batch_stats")
                },
            )
        loaded = ocp.load_checkpointables(checkpoint, self._shapes)
        for path, leaf in jax.tree.leaves_with_path(loaded):
            array = np.asarray(leaf)
            digest.update(repr((path, array.shape, array.dtype.name)).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def trained(self) -> tuple[Path, Whole]:
        """The folder of a training that nobody interrupted, and how it went."""
        return self._uninterrupted("trained", TRAIN)

    @functools.cached_property
    def evaluated(self) -> tuple[Path, Whole]:
        """The folder of an evaluation that nobody interrupted, and how it went."""
        return self._uninterrupted("evaluated", EVAL)

    @functools.cached_property
    def halfway(self) -> Path:
        """The folder of a training that has half of its steps to go."""
        return self._uninterrupted("halfway", TRAIN, "--config.num_epochs=2")[0]

    def whole(self, script: str) -> Whole:
        """Returns how a command goes that nobody interrupts."""
        return (self.trained if script == TRAIN else self.evaluated)[1]

    def prepare(self, script: str) -> Path:
        """Returns a new folder for a command: of a trained run where it needs one."""
        if script == EVAL:
            return self.copy(self.trained[0])
        return self.new_folder() / "run"

    def _uninterrupted(self, name: str, script: str, *more: str) -> tuple[Path, Whole]:
        """Runs a command to its end, in a folder that is kept under a name.

        It is run twice: what it needs is compiled before its time is taken.

        Raises:
            PreparationFailed: it failed though nobody attacked it.
        """
        workdir, notes = self.folder / name / "run", self.folder / f"{name}.json"
        if not notes.exists():
            for is_compiled in (False, True):
                shutil.rmtree(workdir.parent, ignore_errors=True)
                workdir.parent.mkdir()
                if script == EVAL:
                    shutil.copytree(self.trained[0], workdir)
                began = time.monotonic()
                with self.start(script, workdir, *more) as started:
                    started.wait_until(functools.partial(_has_begun, started))
                    start_seconds = time.monotonic() - began
                    ended = started.wait(10 * PATIENCE)
                if fault := ended.fault([0]):
                    raise PreparationFailed(f"{script} without any attack: {fault}")
                if is_compiled:
                    times = {"start_seconds": start_seconds, "seconds": ended.seconds}
                    notes.write_text(json.dumps(times))
        left = self.left(workdir)
        validated = [int(r["step"]) for r in left.metrics if "validation_loss" in r]
        return workdir, Whole(
            left=left,
            steps=int(left.metrics[-1]["step"]),
            validated=tuple(validated),
            **json.loads(notes.read_text()),
        )

    def finish(self, script: str, workdir: Path, *more: str) -> Outcome:
        """Gives the same command once more and compares what the whole run left."""
        ended = self.run(script, workdir, *more)
        if fault := ended.fault([0]):
            return lost(f"the same command does not go on: {fault}")
        try:
            left = self.left(workdir)
        except Exception as error:
            return lost(f"what it left cannot be read: {type(error).__name__}: {error}")
        return compare(left, self.whole(script).left)

    def copy(self, workdir: Path) -> Path:
        """Copies a run's folder into a new folder, under the same name."""
        return Path(shutil.copytree(workdir, self.new_folder() / workdir.name))


def compare(left: Leftover, whole: Leftover) -> Outcome:
    """Compares what two runs left, to the bit."""
    for field in dataclasses.fields(Leftover):
        ours, theirs = getattr(left, field.name), getattr(whole, field.name)
        if ours != theirs:
            return lost(f"other {field.name}: {_first_difference(ours, theirs)}")
    return RIGHT


def _first_difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict):
        ours, theirs = sorted(ours.items()), sorted(theirs.items())
    for one, two in itertools.zip_longest(ours, theirs):
        if one != two:
            return f"{one} in place of {two}"[:300]
    return "their order"


def checkpoint_folders(workdir: Path) -> list[Path]:
    """Lists the whole checkpoints of a run."""
    paths = (workdir / "checkpoints").glob("*")
    return [path for path in paths if path.name.isdecimal() and path.is_dir()]


def _has_begun(started: Started) -> bool:
    return printed_step(started.output) > 0


def _short_digest(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()


def printed_step(output: str) -> int:
    """Returns the last step that a run printed; 0 before the first."""
    steps = re.findall(r"^step ([\d,]+)/.*\n", output, re.MULTILINE)
    return int(steps[-1].replace(",", "")) if steps else 0


def draw_pictures(root: Path) -> None:
    """Draws gray PNG files of the classes: `root`/SPLIT/CLASS/NUMBER.png."""
    rng = np.random.default_rng(0)
    for split, count in PICTURES.items():
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 60, (SIDE // 10, SIDE // 10), np.uint8)
                image = cv2.resize(noise, (SIDE, SIDE))
                x, y = rng.integers(SIDE // 3, SIDE // 2, 2).tolist()
                corner, size = (x - SIDE // 5, y - SIDE // 5), SIDE // 4
                if label == 0:
                    cv2.line(image, (x, 20), (x, SIDE - 20), 255, SIDE // 12)
                elif label == 1:
                    cv2.rectangle(image, (*corner, 2 * size, 2 * size), 255, SIDE // 12)
                else:
                    cv2.circle(image, (x, y), size, 255, -1)
                cv2.imwrite(str(folder / f"{i}.png"), image)


@contextlib.contextmanager
def open_laboratory(kept: Path | None = None) -> Iterator[Laboratory]:
    """Makes a laboratory in a folder that is kept, or in a new one that is not."""
    folder = kept or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Laboratory(folder.resolve())
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)

"""Damage of every file of a workdir: noticed or harmless, never other weights."""

import argparse
import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

import eval
import predict
import train
from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, one_by_one, wrong
from tests.torture.laboratory import (
    EVAL,
    TRAIN,
    Laboratory,
    PreparationFailed,
    checkpoint_folders,
)
from tests.torture.mutations import MUTATIONS
from tests.torture.processes import FAILURES, Ended, call
from vgg_jax import cli
from vgg_jax.training.steps import split
from vgg_jax.training.workdir.checkpoint import restore_model

READ_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Reader:
    """A command that reads a workdir.

    Args:
        main: the command's function.
        arguments: (laboratory, workdir) -> its arguments.
        result: (laboratory, workdir, end) -> what must not depend on the damage.
        is_halfway: it reads a run that has half of its steps to go.
    """

    main: Callable[[Sequence[str]], int]
    arguments: Callable[[Laboratory, Path], list[str]]
    result: Callable[[Laboratory, Path, Ended], str]
    is_halfway: bool = False


def print_weights(arguments: Sequence[str] | None = None) -> int:
    """Restores a network as every command does, and prints a digest of its weights."""
    parser = cli.Parser("weights", None)
    parser.add_workdir("folder of the run")
    return cli.command(_print_weights, parser, arguments)


def _print_weights(values: argparse.Namespace) -> int:
    model, config, _ = restore_model(values.workdir)
    digest = hashlib.blake2b(repr(config).encode(), digest_size=8)
    for path, array in jax.tree.leaves_with_path(split(model)[1:]):
        digest.update(repr(path).encode() + np.asarray(array).tobytes())
    print(f"weights {digest.hexdigest()}")
    return cli.DONE


def _printed(pattern: str) -> Callable[[Laboratory, Path, Ended], str]:
    def result(laboratory: Laboratory, workdir: Path, ended: Ended) -> str:
        return "\n".join(re.findall(pattern, ended.output, re.MULTILINE))

    return result


def _evaluated(laboratory: Laboratory, workdir: Path, ended: Ended) -> str:
    posteriors, results = laboratory.left_by_evaluation(workdir)
    return f"{sorted(posteriors.items())} {results}"


def _trained(laboratory: Laboratory, workdir: Path, ended: Ended) -> str:
    newest = max(checkpoint_folders(workdir), key=lambda path: int(path.name))
    return f"{newest.name} {laboratory.digest(newest)}"


READERS = {
    "the weights": Reader(
        print_weights,
        lambda laboratory, workdir: [f"--workdir={workdir}"],
        _printed(r"^weights .*"),
    ),
    "predict.py": Reader(
        predict.main,
        lambda laboratory, workdir: [
            *(f"--workdir={workdir}", f"--output={workdir.parent / 'maps'}"),
            str(laboratory.pictures / "test" / "box" / "0.png"),
        ],
        _printed(r"^ +[\d.]+%  .*"),
    ),
    "eval.py": Reader(
        eval.main,
        lambda laboratory, workdir: laboratory.arguments(EVAL, workdir),
        _evaluated,
    ),
    "train.py": Reader(
        train.main,
        lambda laboratory, workdir: laboratory.arguments(TRAIN, workdir),
        _trained,
        is_halfway=True,
    ),
}

# What lies in a folder of a run that nobody of this project put there: path, content;
# a path that ends in / is a folder.
STRAYS = (
    ("notes.txt", b"mine"),
    (".nfs000000000001", b""),
    ("checkpoints/notes.txt", b"mine"),
    ("checkpoints/99/", b""),
    ("checkpoints/99", b"a file"),
    ("checkpoints/0/", b""),
    ("checkpoints/latest/", b""),
    ("checkpoints/7.orbax-checkpoint-tmp/", b""),
    ("checkpoints/99/params/", b""),
    ("checkpoints/-3/", b""),
    ("checkpoints/99999999999999999999/", b""),
    ("checkpoints/.snapshot/", b""),
    ("predictions/notes.txt", b"mine"),
    ("predictions/center_q32_score_map.npz.partial", b"half"),
    ("config.json.partial", b"{"),
    ("metrics.jsonl.partial", b"{"),
    ("lost+found/", b""),
)

DAMAGES = ("removed", "a stray file or folder", "swapped", *MUTATIONS)

KINDS = {
    f"{damage}, read by {reader}": (damage, reader)
    for damage in DAMAGES
    for reader in READERS
}


def do_damage(damage: str, workdir: Path, rng: np.random.Generator) -> str:
    """Damages a workdir; returns the path of what it damaged, relative to it."""
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    if damage == "a stray file or folder":
        name, content = STRAYS[rng.integers(len(STRAYS))]
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
        else:
            (workdir / name).write_bytes(content)
        return name
    # A file of arrays is as likely as any other kind of file.
    parts: dict[str, list[Path]] = {}
    for path in files:
        name = path.relative_to(workdir).as_posix()
        parts.setdefault(re.sub(r"\d+|[0-9a-f]{32}", "N", name), []).append(path)
    chosen = parts[str(rng.choice(sorted(parts)))]
    file = chosen[rng.integers(len(chosen))]
    if damage == "removed":
        if rng.random() < 0.3 and file.parent != workdir:
            shutil.rmtree(file.parent)
            return file.parent.relative_to(workdir).as_posix() + "/"
        file.unlink()
    elif damage == "swapped":
        other = files[rng.integers(len(files))]
        content = other.read_bytes()
        other.write_bytes(file.read_bytes())
        file.write_bytes(content)
        return f"{file.relative_to(workdir)} with {other.relative_to(workdir)}"
    else:
        data = file.read_bytes()
        mutate = MUTATIONS[damage] if data else MUTATIONS["appended"]
        file.write_bytes(mutate(rng, data))
    return file.relative_to(workdir).as_posix()


def _read(laboratory: Laboratory, reader: Reader, workdir: Path) -> tuple[Ended, str]:
    """Runs a reader; returns its end and, where it did not fail, its result."""
    arguments = reader.arguments(laboratory, workdir)
    ended = call(reader.main, arguments, READ_SECONDS)
    is_done = ended.code == 0
    return ended, reader.result(laboratory, workdir, ended) if is_done else ""


def run_to_damage(laboratory: Laboratory, reader: Reader) -> Path:
    """Returns the folder whose copies are damaged."""
    return laboratory.halfway if reader.is_halfway else laboratory.evaluated[0]


def expected_result(laboratory: Laboratory, name: str, kept: str | None) -> str:
    """Returns the result of a reader of the intact folder.

    With the step `kept`, it is the result of the folder with this checkpoint alone.
    """
    if (name, kept) not in laboratory.expected:
        reader = READERS[name]
        workdir = laboratory.copy(run_to_damage(laboratory, reader))
        for checkpoint in checkpoint_folders(workdir):
            if kept not in (None, checkpoint.name):
                shutil.rmtree(checkpoint)
        ended, result = _read(laboratory, reader, workdir)
        if fault := ended.fault([0]):
            raise PreparationFailed(f"{name} without any damage: {fault}")
        laboratory.expected[name, kept] = result
    return laboratory.expected[name, kept]


def run_case(laboratory: Laboratory, case: Case, kind: tuple[str, str]) -> Outcome:
    """Damages a copy of a run and reads it."""
    damage, name = kind
    reader, expected = READERS[name], expected_result(laboratory, name, None)
    source = run_to_damage(laboratory, reader)
    workdir = laboratory.copy(source)
    try:
        damaged = do_damage(damage, workdir, case.rng())
        try:
            ended, result = _read(laboratory, reader, workdir)
        except Exception as error:
            return lost(f"{damaged}: done, but it left {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(workdir.parent, ignore_errors=True)
    if fault := ended.fault([0, *FAILURES]):
        return wrong(f"{damaged}: {fault}")
    if damage == "a stray file or folder" and ended.code:
        return wrong(f"{damaged} stops it: {ended.last_line}")
    if ended.code:
        is_named = str(workdir) in ended.output
        return RIGHT if is_named else wrong(f"{damaged}: no path: {ended.last_line}")
    if result == expected:
        return RIGHT
    steps = [checkpoint.name for checkpoint in checkpoint_folders(source)]
    if result not in {expected_result(laboratory, name, step) for step in steps}:
        return lost(f"{damaged}: another result, and nobody says so")
    if not re.search("warning|damaged|error", ended.output):
        return lost(f"{damaged}: another checkpoint is used, and nobody says so")
    return RIGHT


ATTACK = Attack(
    name="damage",
    does="Any file of a run's folder is removed, swapped with another or damaged in "
    "the same ways, or a stray file or folder is added; then the weights are "
    "restored, or predict.py, eval.py or train.py is given the folder",
    right="the result of the intact folder; that of another checkpoint with a message; "
    "or an error that names a path in the folder. A stray file stops nobody",
    weight=4,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

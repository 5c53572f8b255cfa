"""A run's folder: it belongs to one configuration."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_jax import distributed
from vgg_jax.config import Config, differences, from_dict, settings, to_dict
from vgg_jax.files import write_json

CONFIG = "config.json"
CLASS_NAMES = "class_names.json"
DATA = "data.json"
FINISHED = "finished"  # an empty file: the training came to its end


class WorkdirMismatch(ValueError):
    """The folder holds a run of another configuration."""


def claim(workdir: Path, config: Config) -> None:
    """Make the folder this configuration's, or check that it is; the first host writes.

    Raises:
        WorkdirMismatch: it holds a run with other settings; the message lists them.
        ValueError: its config.json is damaged.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if path.exists():
        there = to_dict(read_config(workdir))
        resumable = {name for name, one, _ in settings(config) if one.resumable}
        changed = [
            f"  {field}: {theirs!r} there, {ours!r} now"
            for field, ours, theirs in differences(to_dict(config), there)
            if field not in resumable
        ]
        if changed:
            raise WorkdirMismatch(
                f"{workdir} holds a run with other settings:\n"
                + "\n".join(changed)
                + "\nuse the same settings, or another --workdir"
            )
    if distributed.is_first():
        write_json(path, to_dict(config))


def read_config(workdir: Path) -> Config:
    """The configuration that the folder belongs to.

    Raises:
        FileNotFoundError: no run was started there.
        ValueError: its config.json is damaged, or of another version of this project.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"no run in {workdir}: train one first, with "
            f"`python train.py --config configs/NAME.py --workdir {workdir}`"
        )
    try:
        return from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"cannot read {path} as the settings of a run "
            f"({type(error).__name__}: {error}). Where the run's settings are known, "
            "delete this file and give the command of its training once more, which "
            "writes it anew"
        ) from error


def write_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Keep the name of each label, to be known later without the data."""
    if distributed.is_first():
        write_json(workdir / CLASS_NAMES, list(names))


def read_class_names(workdir: Path) -> tuple[str, ...] | None:
    """The name of each label; None for a run from before they were kept.

    Raises:
        ValueError: a damaged file; the message names it.
    """
    path = workdir / CLASS_NAMES
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text())
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"cannot read {path} as a list of names; delete it")
    return tuple(names)


def check_class_names(workdir: Path, names: Sequence[str]) -> None:
    """That the data has the classes that the run was trained on, in their order.

    Raises:
        WorkdirMismatch: it has not, so labels would mean something else.
    """
    there = read_class_names(workdir)
    for label, (ours, theirs) in enumerate(
        itertools.zip_longest(names, there or names), 1
    ):
        if ours != theirs:
            raise WorkdirMismatch(
                f"the run in {workdir} was trained on other classes: number {label} is "
                f"{theirs!r} there, {ours!r} in the data now. Give the data it was "
                f"trained on, or delete {workdir / CLASS_NAMES} if only names changed"
            )


def write_data(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Keep what decides a run beside its settings: facts of its data, as JSON has."""
    if distributed.is_first():
        write_json(workdir / DATA, facts)


def check_data(workdir: Path, facts: Mapping[str, Any]) -> None:
    """That the data is what it was; a run from before the facts were kept has none.

    Raises:
        WorkdirMismatch: it is not, so the run would go on with other images.
    """
    path = workdir / DATA
    try:
        there = json.loads(path.read_text()) if path.exists() else {}
        changed = [
            f"  {name}: {there[name]} there, {now} now"
            for name, now in facts.items()
            if there.get(name, now) != now
        ]
    except (ValueError, AttributeError) as error:
        raise WorkdirMismatch(f"cannot read {path}; delete it") from error
    if changed:
        raise WorkdirMismatch(
            f"the run in {workdir} was trained on other data:\n"
            + "\n".join(changed)
            + f"\ngive the data it was trained on, or delete {path} to go on with this"
        )


def mark_finished(workdir: Path, finished: bool) -> None:
    """Note that the training came to its end, or that it has further to go."""
    if finished:
        (workdir / FINISHED).touch()
    else:
        (workdir / FINISHED).unlink(missing_ok=True)


def is_finished(workdir: Path) -> bool:
    """Whether the training in this folder came to its end."""
    return (workdir / FINISHED).exists()

"""This module ties the folder of a run to its configuration and its data."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path

from vgg_jax import distributed
from vgg_jax.config import (
    Config,
    differences,
    from_dict,
    is_default,
    settings,
    to_dict,
    validate,
)
from vgg_jax.files import read_json, validate_writable, write_json
from vgg_jax.training.program import has_batch_norm
from vgg_jax.training.schedule import schedule_for
from vgg_jax.training.workdir.lock import refuse_held

CONFIG = "config.json"
CLASS_NAMES = "class_names.json"
CLASSES = "class_names"  # the name, in that file, of the list
DATA = "data.json"
FINISHED = "finished"  # an empty file: the training came to its end


class WorkdirMismatch(ValueError):
    """The folder holds a run of another configuration."""


def refuse_other_run(workdir: Path, config: Config) -> None:
    """Checks that a run with these settings can begin or go on in the folder.

    Reads and writes nothing but the folder's settings, so that a wrong folder is known
    before data are prepared. What `config` leaves to the data, or to the weights that
    it starts from, may be anything.

    Raises:
        WorkdirHeld: another training writes into it; the message names the process.
        WorkdirMismatch: it holds a run with other settings; the message lists them.
        ValueError: its config.json is damaged.
        OSError: the folder cannot be made or written to.
    """
    validate_writable(workdir)
    refuse_held(workdir)
    _refuse_other_settings(workdir, config)


def _refuse_other_settings(workdir: Path, config: Config) -> None:
    """Checks that a folder holds no run, or one that can go on with these settings.

    Raises:
        WorkdirMismatch: it holds a run with other settings; the message lists them.
        ValueError: its config.json is damaged.
    """
    if not (workdir / CONFIG).exists():
        return
    stored = read_config(workdir)
    config = with_stored_choices(config, stored)
    resumable = {name for name, declared, _ in settings(config) if declared.resumable}
    schedule = config.optimizer.schedule
    if schedule_for(config.optimizer).depends_on_num_epochs:
        resumable.remove("num_epochs")
    other_parts = config.accumulate_steps != stored.accumulate_steps
    if other_parts and has_batch_norm(config):
        resumable.remove("accumulate_steps")
    changed = [
        f"  {field}: {theirs!r} there, {ours!r} now"
        for field, ours, theirs in differences(to_dict(config), to_dict(stored))
        if field not in resumable
    ]
    if any("accumulate_steps" in line for line in changed):
        changed.append("  (batch normalization takes the statistics of each part)")
    if any("num_epochs" in line for line in changed):
        changed.append(f"  (the {schedule} schedule depends on num_epochs)")
    if changed:
        raise WorkdirMismatch(
            f"{workdir} holds a run with other settings:\n"
            + "\n".join(changed)
            + "\nuse the same settings, or another --workdir"
        )


def with_stored_choices(config: Config, stored: Config) -> Config:
    """Gives what a configuration leaves to others the values that a stored run has.

    A `model.num_classes` of None was left to the data, a `model.dtype` of None to the
    devices, an `onednn` of None to the length of the run, and with the same
    `init_from` a `data.mean` and `data.std` at their defaults to the weights that it
    names.
    """
    model, data = config.model, config.data
    if model.num_classes is None:
        model = dataclasses.replace(model, num_classes=stored.model.num_classes)
    if model.dtype is None:
        model = dataclasses.replace(model, dtype=stored.model.dtype)
    if (
        config.init_from == stored.init_from is not None
        and is_default(data, "mean")
        and is_default(data, "std")
    ):
        data = dataclasses.replace(data, mean=stored.data.mean, std=stored.data.std)
    onednn = stored.onednn if config.onednn is None else config.onednn
    return dataclasses.replace(config, model=model, data=data, onednn=onednn)


def claim(workdir: Path, config: Config) -> None:
    """Makes a folder this configuration's; the first host writes.

    The caller holds the folder's `WorkdirLock`, so that nobody else does the same.

    Raises:
        WorkdirMismatch: it holds a run with other settings; the message lists them.
        ValueError: its config.json is damaged.
        OSError: the folder cannot be written to.
    """
    _refuse_other_settings(workdir, config)
    if distributed.is_first():
        write_json(workdir / CONFIG, to_dict(config))


def read_config(workdir: Path) -> Config:
    """Reads the configuration that the folder belongs to.

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
        config = from_dict(read_json(path))
        validate(config)
        return config
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"cannot read {path} as the settings of a run "
            f"({type(error).__name__}: {error}). Where the run's settings are known, "
            "delete this file and give the command of its training once more, which "
            "writes it anew"
        ) from error


def write_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Stores the name of each label, so that it is known later without the data."""
    if distributed.is_first():
        write_json(workdir / CLASS_NAMES, {CLASSES: list(names)})


def read_class_names(workdir: Path) -> tuple[str, ...] | None:
    """Reads the name of each label; None for a run that did not store them.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = workdir / CLASS_NAMES
    if not path.exists():
        return None
    try:
        stored = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. Delete it") from error
    names = stored.get(CLASSES) if isinstance(stored, dict) else stored
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"cannot read {path} as a list of names; delete it")
    return tuple(names)


def check_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Checks that the run was trained on these classes, in this order.

    Raises:
        WorkdirMismatch: the classes differ, so labels would mean something else.
    """
    stored = read_class_names(workdir) or names
    for label, (ours, theirs) in enumerate(itertools.zip_longest(names, stored), 1):
        if ours != theirs:
            raise WorkdirMismatch(
                f"the run in {workdir} was trained on other classes: number {label} is "
                f"{theirs!r} there, {ours!r} in the data now. Give the data it was "
                f"trained on, or delete {workdir / CLASS_NAMES} if only names changed"
            )


def write_data_facts(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Stores facts of the data, JSON values, on which a run's steps depend."""
    if distributed.is_first():
        write_json(workdir / DATA, facts)


def check_data_facts(workdir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that the facts of the data are those that the run stored, if it did.

    Returns:
        The facts, and those stored that were not given.

    Raises:
        WorkdirMismatch: the facts differ, so the run would go on with other images.
    """
    path = workdir / DATA
    stored = _read_facts(path)
    changed = [
        f"  {name}: {stored[name]} there, {value} now"
        for name, value in facts.items()
        if stored.get(name, value) != value
    ]
    if changed:
        raise WorkdirMismatch(
            f"the run in {workdir} was trained on other data:\n"
            + "\n".join(changed)
            + f"\ngive the data it was trained on, or delete {path} to go on with this"
        )
    return stored | dict(facts)


def _read_facts(path: Path) -> dict[str, Any]:
    """Reads the facts of a run's data; a run that stored none has none."""
    if not path.exists():
        return {}
    try:
        facts = read_json(path)
    except ValueError as error:
        raise WorkdirMismatch(f"{error}. Delete it") from error
    if not isinstance(facts, dict):
        raise WorkdirMismatch(f"cannot read {path}; delete it")
    return facts


def mark_finished(workdir: Path, finished: bool) -> None:
    """Notes that the training came to its end, or that it has further to go."""
    if finished:
        (workdir / FINISHED).touch()
    else:
        (workdir / FINISHED).unlink(missing_ok=True)


def is_finished(workdir: Path) -> bool:
    """Returns whether the training in this folder came to its end."""
    return (workdir / FINISHED).exists()

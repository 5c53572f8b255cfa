"""The folder of a run, which belongs to one configuration and to the data it was
trained on."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_jax import distributed
from vgg_jax.config import Config, differences, from_dict, settings, to_dict
from vgg_jax.files import read_json, write_json
from vgg_jax.training.schedule import schedule_for

CONFIG = "config.json"
CLASS_NAMES = "class_names.json"
DATA = "data.json"
FINISHED = "finished"  # an empty file: the training came to its end


class WorkdirMismatch(ValueError):
    """The folder holds a run of another configuration."""


def compare_config(workdir: Path, config: Config) -> None:
    """Checks that a run with this configuration may begin or go on in the folder.

    A folder without a run takes any. Settings marked `resumable` may differ, and so may
    a number of classes that `config` leaves to the data.

    Raises:
        WorkdirMismatch: the folder holds a run with other settings; the message lists
            them.
        ValueError: the folder's config.json is damaged.
    """
    if not (workdir / CONFIG).exists():
        return
    stored = read_config(workdir)
    config = with_stored_num_classes(config, stored)
    resumable = {name for name, declared, _ in settings(config) if declared.resumable}
    schedule = config.optimizer.schedule
    if schedule_for(config.optimizer).depends_on_num_epochs:
        resumable.remove("num_epochs")
    changed = [
        f"  {field}: {theirs!r} there, {ours!r} now"
        for field, ours, theirs in differences(to_dict(config), to_dict(stored))
        if field not in resumable
    ]
    if any("num_epochs" in line for line in changed):
        changed.append(f"  (the {schedule} schedule depends on num_epochs)")
    if changed:
        raise WorkdirMismatch(
            f"{workdir} holds a run with other settings:\n"
            + "\n".join(changed)
            + "\nuse the same settings, or another --workdir"
        )


def with_stored_num_classes(config: Config, stored: Config) -> Config:
    """The configuration; a `model.num_classes` of None becomes that of a stored run."""
    if config.model.num_classes is not None:
        return config
    model = dataclasses.replace(config.model, num_classes=stored.model.num_classes)
    return dataclasses.replace(config, model=model)


def claim(workdir: Path, config: Config) -> None:
    """Makes the folder this configuration's; of several hosts the first writes.

    Raises:
        WorkdirMismatch, ValueError: as `compare_config` does.
    """
    compare_config(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
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
        return from_dict(read_json(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"cannot read {path} as the settings of a run "
            f"({type(error).__name__}: {error}). Where the run's settings are known, "
            "delete this file and give the command of its training once more, which "
            "writes it anew"
        ) from error


def write_data(
    workdir: Path, class_names: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Stores what is to be known of the data later; of several hosts the first writes.

    Args:
        workdir: of the run.
        class_names: the name of each label.
        facts: JSON values on which the run's steps depend.
    """
    if distributed.is_first():
        write_json(workdir / CLASS_NAMES, list(class_names))
        write_json(workdir / DATA, facts)


def read_class_names(workdir: Path) -> tuple[str, ...] | None:
    """Reads the name of each label; None for a run that did not store them.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = workdir / CLASS_NAMES
    if not path.exists():
        return None
    try:
        names = read_json(path)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"cannot read {path} as a list of names; delete it")
    return tuple(names)


def compare_data(
    workdir: Path, class_names: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Checks that data are those that the run was trained on, where it stored them.

    Args:
        workdir: of the run.
        class_names, facts: of the data, as `write_data` takes them.

    Raises:
        WorkdirMismatch: they are not, so labels would mean something else, or the run
            would go on with other images.
    """
    stored_names = read_class_names(workdir) or class_names
    pairs = itertools.zip_longest(class_names, stored_names)
    for label, (ours, theirs) in enumerate(pairs, 1):
        if ours != theirs:
            raise WorkdirMismatch(
                f"the run in {workdir} was trained on other classes: number {label} is "
                f"{theirs!r} there, {ours!r} in the data now. Give the data it was "
                f"trained on, or delete {workdir / CLASS_NAMES} if only names changed"
            )
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


def _read_facts(path: Path) -> dict[str, Any]:
    """Reads the facts of a run's data; a run that stored none has none."""
    if not path.exists():
        return {}
    try:
        facts = read_json(path)
    except ValueError:
        facts = None
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
    """Whether the training in this folder came to its end."""
    return (workdir / FINISHED).exists()

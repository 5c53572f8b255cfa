"""This module reads a configuration file, and makes flags of its settings.

Every setting of the file's configuration is a flag `--config.NAME=VALUE`, whose help is
its declaration in `vgg_jax.config`.
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import operator
import pkgutil
import runpy
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_jax.config import (
    Config,
    Curriculum,
    Setting,
    settings,
    shown,
    validate,
    validate_types,
)
from vgg_jax.console import did_you_mean

PREFIX = "config."  # of the flags


class UsageError(ValueError):
    """A command line, or a configuration that it names, cannot be followed."""


def load(
    path: Path, kinds: tuple[type, ...], flags: Mapping[str, str] | None = None
) -> Config | Curriculum:
    """Calls `get_config` of a file.

    The file may import its neighbors by the name of its folder, such as
    `configs.imagenet`, whatever the current folder is. A parameter of its `get_config`
    takes the text of the flag of that name, so that other settings can depend on it.

    Args:
        path: the path of a Python file.
        kinds: the classes that the configuration may have.
        flags: the text of each setting of the command line, by the last part of the
            setting's name.

    Raises:
        UsageError: no such file, or an error in it; the message is one line.
    """
    if not path.is_file():
        raise UsageError(f"no configuration file {path}: {nearest_file(path)}")
    config: Any = None
    try:
        with _importing_neighbors(path):
            contents = runpy.run_path(str(path))
            is_configuration = "get_config" in contents
            if is_configuration:
                get_config = contents["get_config"]
                wanted = inspect.signature(get_config).parameters.keys()
                given = {n: text for n, text in (flags or {}).items() if n in wanted}
                config = get_config(**given)
        for run in named_runs(config).values():
            validate_types(run)
    except Exception as error:  # the file's own code can raise anything
        raise UsageError(
            f"cannot use {path}: {type(error).__name__}: {error}"
        ) from error
    if not is_configuration:
        beside = ", ".join(_configurations(path.parent).values())
        raise UsageError(
            f"{path} is no configuration, for it has no function get_config(); "
            + (f"those beside it are {beside}" if beside else nearest_file(None))
        )
    if not isinstance(config, kinds):
        message = (
            f"expected get_config() in {path} to return a vgg_jax.config."
            f"{' or '.join(kind.__name__ for kind in kinds)}, "
            f"got {type(config).__name__}"
        )
        if isinstance(config, Curriculum):
            runs = ", ".join(config.runs)
            message += f"; give the configuration of one of its runs: {runs}"
        raise UsageError(message)
    return typing.cast(Config | Curriculum, config)


@contextlib.contextmanager
def _importing_neighbors(path: Path) -> Iterator[None]:
    """Lets a file import its folder as a package, and the folders beside that one.

    While the block runs, a package of the folder's name that was imported or installed
    elsewhere is out of the way; afterwards all is as it was. The library's own name and
    those of Python's modules stay theirs.
    """
    folder = path.resolve().parent
    is_taken = folder.name in {"vgg_jax", *sys.stdlib_module_names}

    def take_package() -> dict[str, types.ModuleType]:
        """Removes the folder's package from `sys.modules`; returns its modules."""
        return {
            name: sys.modules.pop(name)
            for name in list(sys.modules)
            if name.partition(".")[0] == folder.name and not is_taken
        }

    path_before, package_before = list(sys.path), take_package()
    sys.path.insert(0, str(folder.parent))
    if not is_taken:
        package = types.ModuleType(folder.name)
        package.__path__ = [str(folder)]
        sys.modules[folder.name] = package
    try:
        yield
    finally:
        sys.path[:] = path_before
        take_package()
        sys.modules.update(package_before)


def nearest_file(path: Path | None) -> str:
    """Ends an error message with the files in configs/ that may be meant."""
    files = _configurations(Path("configs"))
    if not files:
        return "write one as configs/ of the project shows"
    name = "" if path is None else path.stem.lower()
    if name in files:
        return f"did you mean {files[name]!r}?"
    return did_you_mean(f"configs/{name}.py" if name else "", files.values())


def _configurations(folder: Path) -> dict[str, str]:
    """Returns the paths of the configurations in a folder, by their stems."""
    return {
        file.stem: str(file)
        for file in sorted(folder.glob("*.py"))
        if "def get_config" in file.read_text()
    }


def add_flags(
    parser: argparse.ArgumentParser, config: Config | Curriculum, *, with_tables: bool
) -> None:
    """Gives a parser a flag for every setting; a curriculum's are those of all runs.

    Args:
        parser: the parser of a command line.
        config: what `load` returned.
        with_tables: the help lists the names in tables, which load slowly.
    """
    groups: dict[str, Any] = {}
    for name, declared, values in _common_settings(config):
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(
                f"settings of {section or 'the run'}",
                None if groups else "Values are those of FILE; each flag changes one.",
            )
        run = next(iter(named_runs(config).values()))
        kind = _kind(run, name)
        agree = len(set(map(repr, values))) == 1
        groups[section].add_argument(
            f"--{PREFIX}{name}",
            type=functools.partial(parse_value, kind),
            default=argparse.SUPPRESS,
            metavar=str(values[0]) if agree else "DIFFERS",
            help=_describe(declared, with_tables).replace("%", "%%"),
            **({"nargs": "?", "const": True} if kind is bool else {}),
        )


def _describe(declared: Setting, with_tables: bool) -> str:
    """Describes a setting: its meaning, its range, and if a resume may change it."""
    parts = [declared.help]
    if declared.interval:
        parts.append(f"in {declared.interval}")
    choices: Sequence[str] = declared.choices
    if declared.table and with_tables:
        choices = tuple(pkgutil.resolve_name(declared.table))
    if choices:
        parts.append(f"one of {', '.join(choices)}")
    if declared.resumable:
        parts.append("a resumed run may change it")
    return "; ".join(parts)


def parse_value(kind: Any, text: str) -> Any:
    """Reads the value of a setting from the text of a flag.

    Args:
        kind: the setting's annotation.
        text: the text, such as "0.1", "true", "256,384", "(256, 384)" or
            "conv=0.1,fc8=1"; "" or "None" is None where the setting can be None.

    Raises:
        argparse.ArgumentTypeError: text of another type.
    """
    members = typing.get_args(kind)
    try:
        if isinstance(kind, types.UnionType):
            if text in ("", "None"):
                return None
            (kind,) = (one for one in members if one is not types.NoneType)
            return parse_value(kind, text)
        if typing.get_origin(kind) is tuple:
            parts = text.strip("()[] ").split(",")
            return tuple(
                parse_value(members[0], part.strip(" '\""))
                for part in parts
                if part.strip()
            )
        if typing.get_origin(kind) is dict:
            pairs = (part.partition("=") for part in text.strip("{} ").split(","))
            return {
                parse_value(members[0], name.strip(" '\"")): parse_value(
                    members[1], value.strip()
                )
                for name, _, value in pairs
                if name.strip()
            }
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError, TypeError, argparse.ArgumentTypeError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        expected = words.get(kind) or getattr(kind, "__name__", str(kind))
        if typing.get_origin(kind) is tuple:
            expected = str(kind)
        if typing.get_origin(kind) is dict:
            expected = "names and numbers such as conv=0.1,fc8=1"
        raise argparse.ArgumentTypeError(
            f"expected {expected}, got {shown(text)}"
        ) from None


def override(config: Config | Curriculum, values: Mapping[str, Any]) -> None:
    """Changes settings in place, of a curriculum in every run, and validates them all.

    Args:
        config: what `load` returned.
        values: the new values, by `config.` and the settings' names; others are left.

    Raises:
        UsageError: a setting in which runs differ, or settings that do not fit.
    """
    runs = named_runs(config)
    changes = {
        name.removeprefix(PREFIX): value
        for name, value in values.items()
        if name.startswith(PREFIX)
    }
    for name in changes:
        before = {run: operator.attrgetter(name)(its) for run, its in runs.items()}
        if len(set(map(repr, before.values()))) > 1:
            listed = ", ".join(f"{value!r} in {run}" for run, value in before.items())
            raise UsageError(
                f"--{PREFIX}{name} would give every run the same, and they differ: "
                f"{listed}; change it in the configuration files"
            )
    for run in runs.values():
        for name, value in changes.items():
            setattr(_owner(run, name), name.rpartition(".")[2], value)
        try:
            for name, declared, value in settings(run):
                _look_up(name, declared, value)
            validate(run)
        except ValueError as error:
            raise UsageError(str(error)) from error


def _look_up(name: str, declared: Setting, value: Any) -> None:
    """Checks that a name is in the table of its setting, where that has one.

    Raises:
        ValueError: it is not; the message has the nearest names.
    """
    if not declared.table or (declared.prefix and value.startswith(declared.prefix)):
        return
    table = pkgutil.resolve_name(declared.table)
    if value not in table:
        known = [*table, *([f"{declared.prefix}NAME"] if declared.prefix else [])]
        raise ValueError(f"unknown {name} {shown(value)}: {did_you_mean(value, known)}")


def setting_reader(kind: type, name: str) -> Callable[[str], Any]:
    """Makes a reader of a flag that has the values of a setting.

    Args:
        kind: a settings dataclass.
        name: of one of its settings.
    """
    annotation = typing.get_type_hints(kind)[name]

    def read(text: str) -> Any:
        value = parse_value(annotation, text)
        try:
            _declaration(kind, name).validate(name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return read


def add_setting(group: Any, kind: type, name: str) -> None:
    """Gives a group of a parser the flag --NAME for a setting, without a default.

    One that is true or false has --NAME and --no-NAME in place of a value.

    Args:
        group: as `ArgumentParser.add_argument_group` returns it.
        kind: a settings dataclass.
        name: of one of its settings.
    """
    kinds = typing.get_type_hints(kind)[name]
    is_switch = bool in (kinds, *typing.get_args(kinds))
    group.add_argument(
        f"--{name}",
        default=argparse.SUPPRESS,
        help=_describe(_declaration(kind, name), False).replace("%", "%%"),
        **(
            {"action": argparse.BooleanOptionalAction}
            if is_switch
            else {"type": setting_reader(kind, name), "metavar": "X"}
        ),
    )


def _declaration(kind: type, name: str) -> Setting:
    """Returns the declaration of a setting of a settings dataclass."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    declared: Setting = field.metadata["setting"]
    return declared


def named_runs(config: Any) -> dict[str, Config]:
    """Returns the runs of a curriculum by name; one configuration has the name ""."""
    if isinstance(config, Curriculum):
        return config.runs
    return {"": config} if isinstance(config, Config) else {}


def _common_settings(
    config: Config | Curriculum,
) -> Iterator[tuple[str, Setting, list[Any]]]:
    """Gives (name, declaration, value in each run) of settings that all runs have."""
    tables = [
        {name: (declared, value) for name, declared, value in settings(run)}
        for run in named_runs(config).values()
    ]
    for name, (declared, _) in tables[0].items():
        if all(name in table for table in tables):
            yield name, declared, [table[name][1] for table in tables]


def _owner(config: Config, name: str) -> Any:
    """Returns the section that has a setting: for "seed" the whole configuration."""
    section = name.rpartition(".")[0]
    return operator.attrgetter(section)(config) if section else config


def _kind(config: Config, name: str) -> Any:
    """Returns the type annotation of a setting."""
    hints = typing.get_type_hints(type(_owner(config, name)))
    return hints[name.rpartition(".")[2]]

"""What the scripts share: flags, the configuration file, errors without a traceback."""

import dataclasses
import itertools
import logging
import operator
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vgg_jax import config as config_fields
from vgg_jax import distributed
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import Config, Curriculum
from vgg_jax.console import did_you_mean

MAX_SCALE = 10_000  # pixels: a larger one, such as 256384, is a slip of the pen


class UsageError(ValueError):
    """A command line that cannot be followed."""


def new_flags() -> flags.FlagValues:
    """`--config FILE`, `--config.FIELD=VALUE`, `--traceback`; a script adds its own."""
    values = flags.FlagValues()
    # No argument is an override to it: `parse` applies them, to every run of a ladder.
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    flags.DEFINE_bool(
        "traceback", False, "show where an error came from", flag_values=values
    )
    return values


def run(
    main: Callable[[flags.FlagValues], int],
    values: flags.FlagValues,
    *,
    accepts: tuple[type, ...] = (Config,),
) -> None:
    """Parse the command line, call `main`, exit with its code; 2 for a usage error."""
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes look at it

    def work() -> int:
        parse(sys.argv, values, accepts=accepts)
        distributed.join()
        return main(values)

    finish(work)


def finish(work: Callable[[], int]) -> None:
    """Call `work`, exit with its code; an error that a user can mend is one line."""
    prepare_jax()
    if "--traceback" not in sys.argv:
        logging.getLogger("absl").addFilter(_says_it_in_a_line)
    try:
        code = work()
    except (UsageError, flags.Error) as error:
        code = _complain(error, 2)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        code = _complain(error, 1)
        distributed.abandon(code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        code = 128 + signal.SIGINT
        distributed.abandon(code)
    sys.exit(code)


def parse(
    argv: list[str],
    values: flags.FlagValues,
    *,
    accepts: tuple[type, ...] = (Config,),
) -> None:
    """Read the flags; `values.config` is then one of `accepts`, overrides applied.

    Raises:
        UsageError: no such configuration, field or file; the message names the nearest.
        ValueError: a setting of another type than its field's.
    """
    path = _config_path(argv)
    if path is None:
        raise UsageError(f"say which configuration: --config FILE; {_existing(path)}")
    if not path.is_file():
        raise UsageError(f"no configuration file {path}; {_existing(path)}")
    values.set_gnu_getopt()  # overrides may stand between other flags
    try:
        overrides = values(argv, known_only=True)[1:]
    except Exception as error:
        # A wrong flag; else whatever the file raises, which ml_collections may wrap.
        if isinstance(error, flags.Error) and "parsing config file" not in str(error):
            raise
        raise UsageError(f"cannot use {path}: {_explain(error)}") from error
    config: Any = values.config
    if not isinstance(config, accepts):
        raise UsageError(
            f"expected get_config() in {path} to return a vgg_jax.config."
            f"{' or '.join(a.__name__ for a in accepts)}, got {type(config).__name__}"
        )
    if isinstance(config, Config):
        values["config"].value = _override(config, overrides)
    elif isinstance(config, Curriculum):
        changed = {name: _override(r, overrides) for name, r in config.runs.items()}
        for field in _overridden(overrides):
            _check_common(field, config)
        config.runs = changed


def _explain(error: BaseException) -> str:
    """What a configuration file raised, with the nearest names of an unknown field."""
    while error.__context__ is not None:
        error = error.__context__
    text = f"{type(error).__name__}: {error}"
    match = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword.*'(\w+)'", str(error)
    )
    if match and dataclasses.is_dataclass(
        kind := getattr(config_fields, match[1], None)
    ):
        text += (
            f": {did_you_mean(match[2], [f.name for f in dataclasses.fields(kind)])}"
        )
    return text


def _override(config: Config, overrides: list[str]) -> Config:
    """The configuration with `--config.FIELD=VALUE`s applied."""
    config_fields.validate_types(config)
    known = sorted(_fields(config))
    for field in _overridden(overrides):
        if field not in known:
            raise UsageError(
                f"no setting {field!r} in a configuration of {config.model.name}: "
                f"{did_you_mean(field, known)}"
            )
    fields = flags.FlagValues()
    config_flags.DEFINE_config_dataclass(
        "config", config, flag_values=fields, sys_argv=overrides
    )
    rest = fields(["", *overrides])
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; settings are --config.X=Y")
    config_fields.validate_types(fields.config)  # ml_collections puts text into tuples
    return fields.config


def _overridden(overrides: list[str]) -> list[str]:
    """The fields that arguments such as --config.a.b=1 or --noconfig.c change."""
    found = (re.match(r"--?(?:no)?config\.([^=]*)", text) for text in overrides)
    return [match[1] for match in found if match]


def _check_common(field: str, curriculum: Curriculum) -> None:
    """That the runs agree on a setting, so that one value can stand for all."""
    values = {
        name: operator.attrgetter(field)(run) for name, run in curriculum.runs.items()
    }
    if len(set(map(repr, values.values()))) > 1:
        listed = ", ".join(f"{value!r} in {name}" for name, value in values.items())
        raise UsageError(
            f"--config.{field} would give every run the same, and they differ: "
            f"{listed}; change it in the configuration files"
        )


def _says_it_in_a_line(record: logging.LogRecord) -> bool:
    """Orbax logs a traceback of the error that it raises afterwards."""
    return not (record.exc_info and "orbax" in record.pathname)


def scales(texts: list[str]) -> tuple[int, ...]:
    """Short sides Q as the command line gives them, such as 256,384,512.

    Raises:
        UsageError: not whole numbers from 1 to `MAX_SCALE`.
    """
    if not all(text.isdecimal() and 1 <= int(text) <= MAX_SCALE for text in texts):
        raise UsageError(
            "expected --scales 256,384,512, short sides in pixels up to "
            f"{MAX_SCALE:,}, got {','.join(texts)!r}"
        )
    return tuple(map(int, texts))


def config_name(argv: list[str]) -> str:
    """The configuration file's name, which names the default workdir."""
    path = _config_path(argv)
    assert path is not None
    return path.stem


def _config_path(argv: list[str]) -> Path | None:
    path = None
    for argument, following in itertools.pairwise([*argv, ""][1:]):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = Path(value if equals else following)
    return path


def _existing(path: Path | None) -> str:
    here = sorted(map(str, Path("configs").glob("*.py")))
    return did_you_mean(str(path), here) if here else "write one as configs/ shows"


def _fields(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _complain(error: Exception, code: int) -> int:
    where = ""
    if distributed.several():
        where = f"host {jax.process_index()}: "
        if isinstance(error, jax.errors.JaxRuntimeError):
            where += (
                "lost another host, whose own output says why; the same command on all "
                "of them goes on from the last checkpoint\n"
            )
    print(f"{where}error: {error}", file=sys.stderr, flush=True)
    return code

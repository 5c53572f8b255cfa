"""This module gives all commands the same flags, errors and exit codes.

Exit codes of every script and `python -m` command:

    0            done
    1            an error of the data, the files or the machine, or of settings that do
                 not fit them; one line on stderr says what to do
    2            a command line that cannot be followed
    75           another host was lost or did not come: the same command on all of them
                 goes on
    128 + N      stopped by signal N, 130 by Ctrl-C and 143 by SIGTERM: the same command
                 goes on

docs/training.md says which of them a scheduler should answer with another start.
"""

import argparse
import difflib
import itertools
import logging
import pathlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from etils import epath

from vgg_jax import buckets, config_file, distributed
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import MAX_SCALE, Config, settings
from vgg_jax.config_file import UsageError
from vgg_jax.console import did_you_mean
from vgg_jax.files import explain_error, parse_path
from vgg_jax.hosts import heartbeat
from vgg_jax.interrupt import STOPPED, Interrupt

DONE, FAILED, USAGE = 0, 1, 2
RETRY = heartbeat.RETRY

# Errors whose message says all; any other one is a mistake of this program.
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, ImportError, MemoryError)


class Parser(argparse.ArgumentParser):
    """A parser of the flags of one command, which answers mistakes with what was meant.

    Args:
        command: what the user types, such as "python train.py".
        description: the docstring of the command's module.
        config: classes of configuration that the command takes. With some it has the
            flags --config FILE and, for each setting, --config.NAME=VALUE.
    """

    def __init__(
        self, command: str, description: str | None, *, config: tuple[type, ...] = ()
    ):
        super().__init__(
            prog=command,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.kinds = config
        self.several_workdirs = False
        self.weights_have_settings = False
        self.add_argument(
            "--traceback", action="store_true", help="show where an error came from"
        )
        if config:
            self.add_argument(
                "--config",
                metavar="FILE",
                type=pathlib.Path,
                help="a configuration, such as configs/vgg16.py; with --help also its "
                "settings",
            )

    def add_workdir(
        self, help: str, *, several: bool = False, or_weights: bool = False
    ) -> None:
        """Adds --workdir, whose value is a path, or a list of paths with `several`.

        Where the command takes a configuration, the default is runs/NAME. With
        `or_weights` there are --weights, --source and --channels as well, and weights
        can stand in the place of a workdir.
        """
        self.several_workdirs = several
        action = "append" if several else "store"
        self.add_argument(
            "--workdir",
            type=folder,
            required=not self.kinds and not or_weights,
            action=action,
            metavar="DIR",
            help=help + ("; runs/NAME by default" if self.kinds else ""),
        )
        if or_weights:
            self.add_weights("weights in place of a run", several=several)

    def add_weights(
        self, help: str, *, several: bool = False, have_settings: bool = False
    ) -> None:
        """Adds --weights, with --source and --channels.

        With `have_settings` they can stand in the place of --config, too.
        """
        self.weights_have_settings = have_settings
        self.add_argument(
            "--weights",
            action="append" if several else "store",
            metavar="NAME",
            help=f"{help}: a file of another project's, or a name that `python -m "
            "vgg_jax.weights list` prints",
        )
        self.add_source_of_weights()

    def add_source_of_weights(self) -> None:
        """Adds --source and --channels, which say what a file of weights does not."""
        self.add_argument(
            "--source",
            metavar="NAME",
            help="whose weights those are, such as torchvision or oxford, where their "
            "values do not tell",
        )
        self.add_argument(
            "--channels",
            type=one_of(("RGB", "BGR")),
            metavar="ORDER",
            help="the order of color channels that the network of those weights takes, "
            "RGB or BGR, where nothing else tells",
        )

    def add_scales(self, default: str) -> None:
        """Adds --scales, short sides Q; by default (), which stands for `default`."""
        self.add_argument(
            "--scales",
            type=scales,
            default=(),
            metavar="Q,Q",
            help=f"short sides of the images in pixels, such as 256,384,512; {default}",
        )

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the arguments, by default those of the process.

        The result has `config` where the command takes one, with the settings of the
        command line, and the attributes of the other flags.

        Raises:
            UsageError: a command line that cannot be followed.
            SystemExit: after --help was printed.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        wants_help = not {"-h", "--help"}.isdisjoint(arguments)
        path = _config_path(arguments) if self.kinds else None
        config = None
        if path is not None:
            config = config_file.load(path, self.kinds, _config_flags(arguments))
            usage = self.format_usage().removeprefix("usage: ").strip()
            self.usage = usage.replace("%", "%%") + " [--config.NAME=VALUE ...]"
            config_file.add_flags(self, config, with_tables=wants_help)
        elif self.kinds and not wants_help and not self._has_settings(arguments):
            nearest = config_file.nearest_file(None)
            raise UsageError(f"say which configuration: --config FILE; {nearest}")
        self._refuse_unknown_flags(arguments)
        values, rest = self.parse_known_args(arguments)
        if rest:
            hint = "; settings are --config.NAME=VALUE" if self.kinds else ""
            raise UsageError(f"unexpected argument {rest[0]!r}{hint}")
        has_weights = bool(getattr(values, "weights", None))
        if path is not None and config is not None:
            config_file.override(config, vars(values))
            values.config = config
            if getattr(values, "workdir", "") is None and not has_weights:
                run = parse_path("runs") / path.stem
                values.workdir = [run] if self.several_workdirs else run
        if getattr(values, "workdir", "") is None and not has_weights:
            raise UsageError("say which network: --workdir DIR, or --weights NAME")
        return values

    def _has_settings(self, arguments: Sequence[str]) -> bool:
        """Returns whether weights are given that stand in the place of --config."""
        flags = [argument.partition("=")[0] for argument in arguments]
        return self.weights_have_settings and "--weights" in flags

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found wrong; argparse would print the usage and exit."""
        raise UsageError(f"{message}; --help says more")

    def paths(self, values: argparse.Namespace) -> Iterator[tuple[str, epath.Path]]:
        """Gives each argument and setting that is a path, with the flag's name."""
        for action in self._actions:
            value = getattr(values, action.dest, None)
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, pathlib.PurePath):
                    yield (*action.option_strings, action.dest)[0], epath.Path(path)
        config = getattr(values, "config", None)
        for name, _, value in settings(config) if isinstance(config, Config) else ():
            if name.endswith("_dir"):
                yield f"--config.{name}", epath.Path(value)

    def _refuse_unknown_flags(self, arguments: Sequence[str]) -> None:
        """Answers the first flag that is none with those that may be meant.

        `--batch_size`, `--config.bacth_size` and `--config.model.batch_size` are all
        answered with `--config.batch_size`.
        """
        flags = [name for name in self._option_string_actions if name[:2] == "--"]
        words: dict[str, list[str]] = {}  # what may be typed for a flag, shortest first
        for flag in sorted(flags, key=len):
            word = flag.removeprefix("--").removeprefix("config.")
            for typed in {word, word.rpartition(".")[2]}:
                words.setdefault(typed, []).append(flag)
        for argument in itertools.takewhile("--".__ne__, arguments):
            name = argument.partition("=")[0]
            if name[:2] != "--" or name in flags:
                continue
            word = name[2:].lower()
            word = word.removeprefix("noconfig.").removeprefix("config.")
            near = words.get(word) or words.get(word.rpartition(".")[2])
            if near is None:
                similar = difflib.get_close_matches(word, words, cutoff=0.7)
                near = list(itertools.chain(*(words[typed] for typed in similar)))
            meant = " or ".join(map(repr, dict.fromkeys(near)))
            raise UsageError(
                f"{self.prog} has no flag {name!r}: "
                + (f"did you mean {meant}?" if meant else "--help lists its flags")
            )


def _config_path(arguments: Sequence[str]) -> pathlib.Path | None:
    """Finds the file of --config, which is read first: its settings are flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?", type=pathlib.Path)
    return first.parse_known_args(arguments)[0].config


def _config_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Finds the text of each --config.NAME=VALUE, by the last part of NAME."""
    flags = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, text = argument.partition("=")
        if name.startswith(f"--{config_file.PREFIX}"):
            flags[name.rpartition(".")[2]] = text if equals else following
    return flags


def scales(text: str) -> tuple[int, ...]:
    """Reads short sides Q from the text of a flag, such as 256,384,512.

    Raises:
        argparse.ArgumentTypeError: not whole numbers from 1 to `MAX_SCALE`.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= MAX_SCALE for part in parts):
        raise argparse.ArgumentTypeError(
            "expected short sides in pixels such as 256,384,512, each up to "
            f"{MAX_SCALE:,}, got {text!r}"
        )
    return tuple(map(int, parts))


def path(text: str) -> epath.Path:
    """Reads a path from the text of a flag.

    Raises:
        argparse.ArgumentTypeError: it is in a store that cannot be used.
    """
    try:
        return parse_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder(text: str) -> epath.Path:
    """Reads the path of a folder from the text of a flag.

    Raises:
        argparse.ArgumentTypeError: as `path`; or empty text, which would be the current
            folder.
    """
    if not text:
        raise argparse.ArgumentTypeError(
            "expected a folder, got ''; the current folder is '.'"
        )
    return path(text)


def positive(text: str) -> int:
    """Reads a whole number of at least 1 from the text of a flag.

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 1, got {text!r}"
        )
    return int(text)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Makes a reader of one of some names; it answers others with the nearest."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"unknown name {text!r}: {did_you_mean(text, names)}"
            )
        return text

    return read


def comma_separated(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Makes a reader of a flag with several values, such as "0.5,1,2"."""

    def read_all(text: str) -> tuple[Any, ...]:
        try:
            return tuple(map(read, text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {read.__name__}s with commas between them, got {text!r}"
            ) from None

    return read_all


def command(
    main: Callable[[argparse.Namespace], int],
    parser: Parser,
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads the command line, calls `main`, and prints an error as one line.

    Args:
        main: the function that does the work; its result is an exit code.
        parser: the parser that reads the command line.
        arguments: the command line; by default that of the process.

    Returns:
        The exit code, as this module's docstring says.
    """
    values = argparse.Namespace(traceback=False)
    try:
        prepare_jax()  # before `Interrupt` has a thread, with memory of its own
        with Interrupt(ends_process=True):
            values = parser.read(arguments)
            if not values.traceback:
                logging.getLogger("absl").addFilter(_is_no_orbax_traceback)
                # Orbax leaves it behind where a checkpoint is damaged.
                warnings.filterwarnings("ignore", "coroutine .*_background_load")
            code = main(values)
            distributed.wait_for_all()  # the first host has more to write
        return code
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr, flush=True)
        code = STOPPED + (stop.args[0] if stop.args else signal.SIGINT)
    except Exception as error:
        if not isinstance(error, (*EXPECTED_ERRORS, *buckets.errors())):
            if distributed.several():  # they would wait for this one for a minute
                traceback.print_exc()
                distributed.abandon(FAILED)
            raise
        if values.traceback:
            traceback.print_exc()
        code = USAGE if isinstance(error, UsageError) else FAILED
        message = explain_error(error, [*parser.paths(values)])
        message = message or "expected more memory than there is"
        if (reason := distributed.reason_of_loss(error)) is not None:
            code, message = RETRY, reason
            if distributed.several():
                heartbeat.end(jax.process_index(), reason)
        where = f"host {jax.process_index()}: " if distributed.several() else ""
        print(f"{where}error: {message}", file=sys.stderr, flush=True)
    distributed.abandon(code)
    return code


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
    """Returns whether a log record is shown.

    Orbax logs tracebacks of errors that it raises too; these are not shown.
    """
    return not (record.exc_info and "orbax" in record.pathname)

"""What the scripts share: flags, the configuration file, errors without a traceback."""

import dataclasses
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from vgg_jax import hosts
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    NiNConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.names import did_you_mean

_GROUPS: dict[str, tuple[type, ...]] = {
    "model": (VGGConfig, NiNConfig),
    "data": (DataConfig,),
    "optimizer": (OptimizerConfig,),
    "evaluation": (EvaluationConfig,),
}


class UsageError(ValueError):
    """A command line that cannot be followed."""


def new_flags() -> flags.FlagValues:
    """`--config FILE`, `--config.FIELD=VALUE`, `--traceback`; a script adds its own."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_bool(
        "traceback", False, "show where an error came from", flag_values=values
    )
    return values


def run(main: Callable[[flags.FlagValues], int], values: flags.FlagValues) -> None:
    """Parse the command line, call `main`, exit with its code; 2 for a usage error."""
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes look at it

    def work() -> int:
        parse(sys.argv, values)
        hosts.join()
        return main(values)

    finish(work)


def finish(work: Callable[[], int]) -> None:
    """Call `work`, exit with its code; an error that a user can mend is one line."""
    prepare_jax()
    try:
        code = work()
    except (UsageError, flags.Error) as error:
        code = _complain(error, 2)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        code = _complain(error, 1)
        hosts.abandon(code)
    sys.exit(code)


def parse(argv: list[str], values: flags.FlagValues) -> None:
    """Read the flags.

    Raises:
        UsageError: no such configuration, field or file; the message names the nearest.
    """
    known = set(_fields())
    for argument in argv[1:]:
        field = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and field.startswith("config."):
            field = field.removeprefix("config.")
            if field not in known:
                raise UsageError(
                    f"no setting {field!r} in a configuration: "
                    f"{did_you_mean(field, sorted(known))}"
                )
    path = _config_path(argv)
    if path is None:
        raise UsageError(f"say which configuration: --config FILE; {_existing(path)}")
    if not path.exists():
        raise UsageError(f"no configuration file {path}; {_existing(path)}")
    rest = values(argv)
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; settings are --config.X=Y")
    if not isinstance(values.config, Config):
        raise UsageError(
            f"expected get_config() in {path} to return a vgg_jax.config.Config, "
            f"got {type(values.config).__name__}"
        )


def scales(texts: list[str]) -> tuple[int, ...]:
    """Short sides Q as the command line gives them, such as 256,384,512.

    Raises:
        UsageError: not whole numbers above zero.
    """
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UsageError(f"expected --scales 256,384,512, got {','.join(texts)!r}")
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


def _fields() -> Iterator[str]:
    for field in dataclasses.fields(Config):
        yield field.name
        for group in _GROUPS.get(field.name, ()):
            yield from (f"{field.name}.{f.name}" for f in dataclasses.fields(group))


def _complain(error: Exception, code: int) -> int:
    where = ""
    if hosts.several():
        where = f"host {jax.process_index()}: "
        if isinstance(error, jax.errors.JaxRuntimeError):
            where += (
                "lost another host, whose own output says why; the same command on all "
                "of them goes on from the last checkpoint\n"
            )
    print(f"{where}error: {error}", file=sys.stderr, flush=True)
    return code

"""Configurations nobody would write: taken as they were told, or refused in a line."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, one_by_one, wrong
from tests.torture.laboratory import ROOT, Laboratory
from tests.torture.mutations import MUTATIONS
from tests.torture.processes import FAILURES, Ended, call
from vgg_jax import cli
from vgg_jax.config import Config, Curriculum, from_dict, settings, to_dict
from vgg_jax.config_file import named_runs
from vgg_jax.distributed import make_mesh
from vgg_jax.training.program import build_program, validate_settings
from vgg_jax.training.schedule import Timetable

BUILD_EVERY = 20  # of so many cases one builds its network too
SECONDS = 60  # that a configuration may take until it is taken or refused
IMAGES = 1_281_167  # of the data set that a configuration is planned for

# Texts for a setting of any type.
_SHORT = """
0 1 -1 2 3 5 7 0.5 -0.5 1e-9 1e9 1e400 -0 +1 1_000 0x10 1.0 00 224 256 4294967296
NaN inf -inf None none true True yes false [] () (1,) 1,2 1,2,3 1,,2 , ' " \\ % %s {}
$HOME ~ / .. é 123.68,116.779,103.939 sgd vgg16 nin folder tfds: tfds:x plateau cosine
bfloat16 float16 he paper conv1_1 fc8,fc7 pcr skip raise posteriors global_pool
"""
TEXTS = (
    *("", " ", "a" * 5_000, "9" * 5_000, "1" + 400 * "0", "\N{ARABIC-INDIC DIGIT ONE}"),
    *(str(2**31), str(2**32), str(2**63), str(10**18), "\x07", "1, 2", "(1, 2)"),
    *_SHORT.split(),
)

# Arguments that are no settings, or badly written ones.
_WORDS = """
--config.seed --config -- - --config.=1 --config.model=1 --seed=1 --help=1
--config.model.name --config.seeed=1 extra --workdir --config.data.crop
--noconfig.remat --config.remat= = --config.__class__=1 --config.é=1
--config.model.__dict__=1 --traceback=1 --config.optimizer.=x --Config.seed=1
"""
WORDS = tuple(_WORDS.split())


def near_values(value: Any, rng: np.random.Generator) -> list[str]:
    """Gives texts that are near to a setting's own value."""
    if isinstance(value, bool):
        return ["true", "false"]
    if isinstance(value, int | float):
        factor = float(10 ** rng.uniform(-3, 3))
        scaled = value * factor
        texts = [str(scaled), str(-value), str(value + 1), str(value - 1)]
        return [*texts, str(round(scaled))] if math.isfinite(scaled) else texts
    if isinstance(value, tuple):
        return [",".join(map(str, value[:1] * n)) for n in (1, 2, 3, 4, 100)]
    return [str(value), str(value)[:-1], str(value).upper()]


def random_flags(
    config: Config | Curriculum, rng: np.random.Generator, count: int
) -> Iterator[str]:
    """Makes flags for so many settings of a configuration."""
    run = next(iter(named_runs(config).values()))
    known = list(settings(run))
    for index in rng.choice(len(known), count, replace=False):
        name, declared, value = known[index]
        texts = [*near_values(value, rng), *declared.choices]
        if rng.random() < 0.5:
            texts = list(TEXTS)
        yield f"--config.{name}={texts[rng.integers(len(texts))]}"


def random_words(rng: np.random.Generator) -> Iterator[str]:
    """Makes one to three arguments that are no settings, or badly written ones."""
    for _ in range(rng.integers(1, 4)):
        word, text = (words[rng.integers(len(words))] for words in (WORDS, TEXTS))
        yield word if rng.random() < 0.5 else word + text[:50]


def take(arguments: Sequence[str]) -> int:
    """Reads a command line as train.py does, and plans the run without its data."""
    parser = cli.Parser("python train.py", __doc__, config=(Config, Curriculum))
    parser.add_workdir("folder of the run")
    return cli.command(_plan, parser, arguments)


def _plan(values: argparse.Namespace) -> int:
    for config in named_runs(values.config).values():
        if config.model.num_classes is None:
            model = dataclasses.replace(config.model, num_classes=1000)
            config = dataclasses.replace(config, model=model)
        validate_settings(config, 1)
        timetable = Timetable.for_config(config, IMAGES)
        stored = from_dict(json.loads(json.dumps(to_dict(config))))
        print("planned", timetable.total_steps, json.dumps(to_dict(config)))
        if repr(stored) != repr(config):
            print("config.json would give another configuration back")
    return cli.DONE


def build(arguments: Sequence[str]) -> int:
    """Does the same, and builds the network and the training step too."""
    parser = cli.Parser("python train.py", __doc__, config=(Config, Curriculum))
    parser.add_workdir("folder of the run")
    return cli.command(_build, parser, arguments)


def _build(values: argparse.Namespace) -> int:
    code = _plan(values)
    for config in named_runs(values.config).values():
        if config.model.num_classes is not None:
            build_program(config, make_mesh())
    return code


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of command line.

    Args:
        flags: how many settings it has; 0 has words that are none.
        changes_file: the configuration file is damaged.
    """

    flags: int
    changes_file: bool = False


KINDS = {
    "one setting": Kind(1),
    "two settings": Kind(2),
    "six settings": Kind(6),
    "words that are no settings": Kind(0),
    "a damaged file": Kind(1, changes_file=True),
}


def arguments_for(
    case: Case, kind: Kind, laboratory: Laboratory
) -> tuple[list[str], list[str]]:
    """Makes a command line; returns it, and those of its arguments that are flags."""
    rng = case.rng()
    files = [
        path
        for path in sorted((ROOT / "configs").glob("*.py"))
        if "def get_config" in path.read_text()
    ]
    file = files[rng.integers(len(files))]
    config = cli.config_file.load(file, (Config, Curriculum))
    if kind.changes_file:
        names = sorted(MUTATIONS)
        text = MUTATIONS[names[rng.integers(len(names))]](rng, file.read_bytes())
        file = laboratory.folder / "damaged.py"
        file.write_bytes(text)
    flags = list(random_flags(config, rng, kind.flags) if kind.flags else [])
    words = flags or list(random_words(rng))
    return [
        f"--config={file}",
        f"--workdir={laboratory.folder / 'none'}",
        *words,
    ], flags


def untold(ended: Ended, flags: Sequence[str]) -> str | None:
    """Says which number was taken for another than the one that the user wrote."""
    planned = [line for line in ended.output.splitlines() if line.startswith("planned")]
    for line in planned:
        tree = json.loads(line.split(" ", 2)[2])
        for flag in flags:
            name, _, text = flag.removeprefix("--config.").partition("=")
            value = tree
            for part in name.split("."):
                value = value[part]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if text == "None":
                continue  # the number of classes is then that of the data
            if is_number and float(text) != value:
                return f"{flag} was taken for {value}"
    return None


def run_case(laboratory: Laboratory, case: Case, kind: Kind) -> Outcome:
    """Gives a command line; looks at the answer."""
    arguments, flags = arguments_for(case, kind, laboratory)
    shown = " ".join(
        argument[:80] for argument in arguments if "workdir" not in argument
    )
    main = take if case.number % BUILD_EVERY else build
    ended = call(main, arguments, SECONDS)
    if fault := ended.fault([0, *FAILURES]):
        return wrong(f"{shown}: {fault}")
    if ended.code:
        lines = ended.output.strip().splitlines()
        if lines[0].startswith("planned"):  # and refused as the network was built
            lines.pop(0)
        if len(lines) > 1:
            return wrong(f"{shown}: {len(lines)} lines in place of one: {lines[0]}")
        return RIGHT
    if "would give another" in ended.output:
        return lost(f"{shown}: config.json would give another configuration back")
    if misread := untold(ended, flags):
        return lost(misread[:200])
    return RIGHT


ATTACK = Attack(
    name="configurations",
    does="Random settings, from sensible to absurd, in every file of configs/, words "
    "that are no settings, and damaged configuration files; the run is planned without "
    "its data, and of some the network is built",
    right="refused in one line, or taken: every number as it was written, and "
    "config.json gives the same configuration back",
    weight=2,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

"""Speed on one GPU beside PyTorch's, in a few minutes: make benchmark-gpu

Alone, without an environment of its own: python -m benchmarks.gpu [--write FILE]

Measures training, inference, dense evaluation of mixed sizes and the whole training
loop with its input pipeline, and compares logits with PyTorch's in float32 throughout.
Each group of parts has fresh processes, which take turns. The most important parts come
first; those for which there is no time are named. Every row is printed, and written to
the file, as soon as it is measured. Ends with code 1 where a part had an error.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: python benchmarks/gpu.py
    sys.path[0] = str(Path(__file__).parents[1])

import jax

from benchmarks.cards import find_card
from benchmarks.cases import dense_batches, make_case
from benchmarks.record import now, save, writable
from benchmarks.sides import OutOfTime, Side, Unanswered
from vgg_jax.config import Config, NiNConfig, VGGConfig, to_dict
from vgg_jax.files import read_json
from vgg_jax.inference.dense import Shape
from vgg_jax.models.measure import summary

NETWORKS: dict[str, VGGConfig | NiNConfig] = {
    "vgg16": VGGConfig(name="vgg16"),
    "vgg16_bn": VGGConfig(name="vgg16_bn"),
    "vgg19": VGGConfig(name="vgg19"),
    "nin_imagenet": NiNConfig(name="nin_imagenet"),
}
DTYPES = ("bfloat16", "float32")
TIMED = ("train", "forward")  # the parts that PyTorch has, too
PLAIN = "train, plain forms"
SCALES = (384, 256, 512)
TOY_SCALES = (64, 80, 96)

# Of what the processes run on: one card, whose memory both sides share.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
TOY_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
PART_SECONDS = 150.0  # after which a process is taken to hang
GUESS = 20.0  # seconds that a part takes of which nothing is known yet
OUTSIDE = 15.0  # seconds of the time given that imports and the end may take
MOST = 60.0
MINUTES = 6.0
TOY_SECONDS = 0.01  # of a turn
LOOP_SECONDS = 8.0  # of training in the loop
# Largest difference of logits, as a share of the largest logit: TF32 is far above it.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts of one network that are measured in the same processes, in this order."""

    network: str
    dtype: str
    batch_size: int
    parts: tuple[str, ...]

    def key(self, part: str) -> tuple[str, str, str, int]:
        """Returns what tells a part's row from others, as `Row.key`."""
        return self.network, part, self.dtype, self.batch_size


def make_plan(networks: Iterable[str], scales: Iterable[int]) -> list[Group]:
    """Returns what is measured of networks, the most important first.

    Args:
        networks: keys of `NETWORKS`; the first has every part.
        scales: short sides Q of the dense evaluation, in pixels.
    """
    dense, *more_dense = (f"dense, Q={scale}" for scale in scales)
    first, *others = networks
    bfloat16, float32 = DTYPES
    plan = [
        Group(first, bfloat16, 256, TIMED),
        Group(first, float32, 256, ("logits",)),
        Group(first, bfloat16, 256, ("loop",)),
        Group(first, bfloat16, 256, (dense,)),
        *(Group(name, bfloat16, 256, ("train",)) for name in reversed(others)),
        Group(first, float32, 256, ("train",)),
        Group(first, bfloat16, 256, (PLAIN,)),
        Group(first, bfloat16, 64, TIMED),
        Group(first, float32, 256, ("forward",)),
        *(Group(name, bfloat16, 256, ("forward",)) for name in others),
        *(Group(name, float32, 256, ("logits", *TIMED)) for name in others),
        Group(first, float32, 64, TIMED),
    ]
    plan += [
        Group(name, dtype, 64, TIMED)
        for dtype, name in itertools.product(DTYPES, others)
    ]
    plan += [
        Group(first, bfloat16, 256, tuple(more_dense)),
        Group(first, float32, 256, (dense, *more_dense)),
    ]
    return plan


@dataclasses.dataclass
class Row:
    """What was measured of one part.

    Args:
        network, part, dtype, batch_size: which part it is.
        images: how many images a step has.
        flops: floating-point operations of a step, of the convolutions by definition:
            twice the multiply-adds, and for training three times that.
        seconds: the seconds of a step on each side, "JAX" and "PyTorch", in each turn.
        numbers: what else was measured, by name.
        notes: what is to be said of it.
        problems: the error of each side that had one.
        is_cut_short: whether there was no time for all of it.
    """

    network: str
    part: str
    dtype: str
    batch_size: int
    images: int = 0
    flops: float = 0.0
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    is_cut_short: bool = False

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells the row from others."""
        return self.network, self.part, self.dtype, self.batch_size

    @property
    def title(self) -> str:
        """The part's name in a sentence."""
        return f"{self.network} {self.part}, {self.dtype}, batch {self.batch_size}"

    def rates(self, side: str) -> list[float]:
        """Returns the images a second of each turn of a side, the slowest first."""
        return sorted(self.images / s for s in self.seconds.get(side, ()))

    def rate(self, side: str) -> float | None:
        """Returns the median of images a second; None where a side has none."""
        seconds = self.seconds.get(side)
        return self.images / statistics.median(seconds) if seconds else None

    def ratio(self) -> float | None:
        """Returns JAX's rate over PyTorch's."""
        ours, theirs = self.rate("JAX"), self.rate("PyTorch")
        return ours / theirs if ours and theirs else None

    def share(self, side: str, peak: float | None) -> float | None:
        """Returns which share of a peak, in FLOP/s, the side reaches."""
        rate = self.rate(side)
        return self.flops / self.images * rate / peak if rate and peak else None

    def to_dict(self, peak: float | None) -> dict[str, Any]:
        """Returns all numbers as JSON can hold them."""
        return dataclasses.asdict(self) | {
            "images_per_second": {side: self.rate(side) for side in self.seconds},
            "ratio": self.ratio(),
            "share_of_peak": {side: self.share(side, peak) for side in self.seconds},
        }


COLUMNS = (
    "network",
    "part",
    "type",
    "batch",
    "JAX images/s",
    "PyTorch images/s",
    "ratio",
    "JAX of peak",
    "PyTorch of peak",
    "notes",
)


def format_row(row: Row, peak: float | None) -> str:
    """Returns a row of the table: medians, with the slowest and the fastest turn."""
    rates = []
    for side in ("JAX", "PyTorch"):
        turns, median = row.rates(side), row.rate(side)
        spread = f" ({turns[0]:,.0f} to {turns[-1]:,.0f})" if len(turns) > 1 else ""
        rates.append("-" if median is None else f"{median:,.0f}{spread}")
    ratio = row.ratio()
    shares = (row.share(side, peak) for side in ("JAX", "PyTorch"))
    problems = (f"{side}: {text}" for side, text in row.problems.items())
    notes = "; ".join([*row.notes, *problems]).replace("|", "/")
    cells = [
        *map(str, row.key),
        *rates,
        "-" if ratio is None else f"{ratio:.2f}",
        *("-" if share is None else f"{share:.1%}" for share in shares),
        notes,
    ]
    return f"| {' | '.join(cells)} |"


def kind_of(part: str) -> str:
    """Returns what a part is without its details: "dense" of "dense, Q=384"."""
    return part.partition(",")[0]


class Clock:
    """Says how much time is left, and whether it is enough for a part.

    Args:
        seconds: the time there is.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._longest: dict[str, float] = {}

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self._end - time.monotonic()

    def suffices(self, part: str) -> bool:
        """Returns whether a part fits that takes as long as the longest of its kind.

        More than `MOST` need not be left for any: it is stopped when the time is up.
        """
        return self.left() > min(MOST, self._longest.get(kind_of(part), GUESS))

    def add(self, part: str, seconds: float) -> None:
        """Takes the seconds that a part took."""
        kind = kind_of(part)
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


@dataclasses.dataclass
class Benchmark:
    """A run of the benchmark: its settings, its clock, and its rows so far."""

    arguments: argparse.Namespace
    torch: str | None  # the interpreter that has it
    folder: Path  # for what the sides exchange
    clock: Clock
    rows: list[Row] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    planned: Sequence[Group] = ()
    has_asked: bool = False  # for the facts; before, they are of an earlier call
    is_uncompiled: bool = False  # since torch.compile has failed

    def run(self, plan: Sequence[Group]) -> None:
        """Measures the groups in turn, and prints and writes each row at once.

        The processes of the next group start, and wait, while one is measured.
        """
        self.planned = plan
        sides = self._start(plan[0]) if plan else {}
        for i, group in enumerate(plan):
            following: dict[str, Side] = {}
            try:
                if i + 1 < len(plan) and self.clock.left() > GUESS:
                    following = self._start(plan[i + 1])
                self._measure(group, sides)
            except BaseException:
                close(following)
                raise
            finally:
                close(sides)
            sides = following

    def _measure(self, group: Group, sides: dict[str, Side]) -> None:
        """Measures the parts of a group as far as there is time."""
        for part in group.parts:
            row = Row(group.network, part, group.dtype, group.batch_size)
            if not self.clock.suffices(part):
                if row.title not in self.left_out:
                    self.left_out.append(row.title)
                continue
            if not sides:
                sides |= self._start(group)
            for side in sides.values():
                side.start_if_ended()
            if not self.has_asked:
                self._learn_facts(sides)
            start = time.monotonic()
            try:
                self._fill(row, group, sides)
            except Exception as error:  # of this program itself: the rest goes on
                traceback.print_exc()
                row.problems["benchmark"] = f"{type(error).__name__}: {error}"
            self.clock.add(part, time.monotonic() - start)
            self.rows = [r for r in self.rows if r.key != row.key] + [row]
            self.left_out = [title for title in self.left_out if title != row.title]
            self.left_out += [row.title] * row.is_cut_short
            print(format_row(row, self.peak(row)), flush=True)
            self.write()

    def _fill(self, row: Row, group: Group, sides: Mapping[str, Side]) -> None:
        """Measures a part; errors become a part of the row."""
        config = self.config_of(group)
        match row.part:
            case "logits":
                self._compare_logits(row, sides)
            case "loop":
                self._train_in_loop(row, group, sides["JAX"])
            case _:
                row.images, row.flops = step_of(row.part, config)
                both = sides if row.part in TIMED else {"JAX": sides["JAX"]}
                self._take_turns(row, both)

    def _take_turns(self, row: Row, sides: Mapping[str, Side]) -> None:
        active = list(sides)
        if not self._have_same_parameters(row, sides):
            active.remove("PyTorch")
        for turn in range(self.arguments.turns):
            start = time.monotonic()
            for name in list(active):
                seconds = self._ask(row, name, sides[name], self._request(row, name))
                if seconds is None and self._can_be_eager(row, name):
                    self.is_uncompiled = True
                    sides[name].start_if_ended()
                    request = self._request(row, name)
                    seconds = self._ask(row, name, sides[name], request)
                if seconds is None:
                    active.remove(name)
                else:
                    row.seconds.setdefault(name, []).append(seconds)
            if turn and time.monotonic() - start > self.clock.left():
                break
        if "PyTorch" in row.seconds and self.is_uncompiled:
            row.notes.append("PyTorch without torch.compile")

    def _request(self, row: Row, name: str) -> str:
        is_eager = name == "PyTorch" and self.is_uncompiled
        return f"{row.part}, eager" if is_eager else row.part

    def _can_be_eager(self, row: Row, name: str) -> bool:
        """Returns whether it was torch.compile that failed, for all that is known."""
        return (
            name == "PyTorch"
            and not self.arguments.eager
            and not self.is_uncompiled
            and name not in row.seconds
            and "memory" not in row.problems.get(name, "").lower()
            and self.clock.left() > GUESS
        )

    def _have_same_parameters(self, row: Row, sides: Mapping[str, Side]) -> bool:
        """Returns whether all sides answer that they have as many parameters."""
        counts = {
            name: self._ask(row, name, side, "parameters")
            for name, side in sides.items()
        }
        if len({*counts.values()} - {None}) > 1:
            row.problems["PyTorch"] = (
                f"not the same network: {counts['JAX']:,} parameters in JAX, "
                f"{counts['PyTorch']:,} in PyTorch"
            )
            return False
        return True

    def _compare_logits(self, row: Row, sides: Mapping[str, Side]) -> None:
        largest = self._ask(row, "JAX", sides["JAX"], "logits")
        if largest is None or "PyTorch" not in sides:
            row.notes.append("nothing to compare logits with")
            return
        difference = self._ask(row, "PyTorch", sides["PyTorch"], "logits")
        if difference is None:
            return
        row.numbers = {"largest_logit": largest, "largest_difference": difference}
        row.notes.append(
            f"logits differ by at most {difference:.1e}, the largest is {largest:.3g} "
            "(the same weights, without TF32)"
        )
        if not difference <= TOLERANCE * largest:
            row.problems["logits"] = f"the difference is above {TOLERANCE:g} of that"

    def _train_in_loop(self, row: Row, group: Group, side: Side) -> None:
        lines = self._ask(row, "JAX", side, "loop")
        if lines is None:
            return
        row.images, row.flops = step_of("train", self.config_of(group))
        row.seconds["JAX"] = [row.images / line["images_per_second"] for line in lines]
        waiting = statistics.median(line["waiting_for_images"] for line in lines)
        row.numbers["waiting_for_images"] = waiting
        row.notes.append(f"train.py's loop on JPEGs, waited {waiting:.0%} for images")
        alone = self._rate_of_training(group)
        if alone is not None:
            share = statistics.median(row.rates("JAX")) / alone
            row.notes.append(f"{share:.0%} of the step's own rate")

    def _rate_of_training(self, group: Group) -> float | None:
        key = group.key("train")
        return next((row.rate("JAX") for row in self.rows if row.key == key), None)

    def _ask(self, row: Row, name: str, side: Side, request: str) -> Any:
        """Returns a side's answer; None where it had an error, which the row keeps."""
        left = self.clock.left()
        try:
            return side.ask(request, min(left, PART_SECONDS))
        except OutOfTime:
            if left <= PART_SECONDS:
                row.notes.append(f"{name}: stopped, for the time was up")
                row.is_cut_short = True
            else:
                hung = f"{request} took more than {PART_SECONDS:.0f} s"
                row.problems.setdefault(name, hung)
        except Unanswered as error:
            row.problems.setdefault(name, str(error))
            print(f"{row.title}, {name}:\n{side.errors()}", file=sys.stderr, flush=True)
        return None

    def _start(self, group: Group) -> dict[str, Side]:
        """Starts the processes of a group, which wait for the first request."""
        arguments, config = self.arguments, self.config_of(group)
        given = ENVIRONMENT | (TOY_ENVIRONMENT if arguments.toy else {})
        environment = {
            name: os.environ.get(name, value) for name, value in given.items()
        }
        cards = environment["CUDA_VISIBLE_DEVICES"].split(",")
        environment["CUDA_VISIBLE_DEVICES"] = cards[0]
        python = sys.executable
        if group.parts == ("loop",):
            rate = self._rate_of_training(group)
            steps = arguments.loop_steps
            if steps is None:  # as many as take so long; few, where nothing is known
                steps = 24 if rate is None else LOOP_SECONDS * rate / group.batch_size
            settings = {"steps": max(8, round(steps)), "tf32": arguments.tf32}
            settings["config"] = to_dict(config)
            return {
                "JAX": Side(python, "benchmarks.loop_in_jax", settings, environment)
            }
        shared = {
            "seconds": arguments.seconds,
            "tf32": arguments.tf32,
            "exchange": str(self.folder / "logits.npz"),
        }
        ours = shared | {"config": to_dict(config)}
        sides = {"JAX": Side(python, "benchmarks.in_jax", ours, environment)}
        if self.torch is not None and {*group.parts} & {*TIMED, "logits"}:
            theirs = shared | {
                "options": dataclasses.asdict(config.model),
                "side": config.data.crop,
                "batch_size": config.batch_size,
                "device": "cpu" if arguments.toy else "cuda",
                "dtype": group.dtype,
                "compiled": not arguments.eager,
            }
            sides["PyTorch"] = Side(
                self.torch, "benchmarks.in_torch", theirs, environment
            )
        return sides

    def config_of(self, group: Group) -> Config:
        """Returns the configuration of a group; with --toy one of toy sizes."""
        model = dataclasses.replace(NETWORKS[group.network], dtype=group.dtype)
        if not self.arguments.toy:
            config = make_case(model, 224, group.batch_size)
            config.evaluation.scales = SCALES
            return config
        model = dataclasses.replace(model, width=1 / 64, num_classes=8)
        if isinstance(model, VGGConfig):
            model.fc_kernel = 2
        config = make_case(model, 64, max(1, group.batch_size // 64))
        config.evaluation.scales, config.evaluation.batch_size = TOY_SCALES, 1
        return config

    def peak(self, row: Row) -> float | None:
        """Returns the peak of the card in the type of a row; None if not known."""
        card = find_card(self.facts["card"])
        return card.peak(row.dtype, self.arguments.tf32) if card else None

    def _learn_facts(self, sides: Mapping[str, Side]) -> None:
        """Asks what the sides run on, and prints the head of the table.

        The program ends where JAX finds no GPU, or where the rows of an earlier call
        were measured with something else.
        """
        facts = {}
        for name, side in sides.items():
            try:
                facts[name] = side.ask("facts", PART_SECONDS)
            except Unanswered as error:
                print(side.errors(), file=sys.stderr)
                if name == "JAX":
                    sys.exit(f"JAX does not start: {error}")
        ours = facts["JAX"]
        if ours["platform"] != "gpu" and not self.arguments.toy:
            print(sides["JAX"].errors(), file=sys.stderr)  # why JAX found none
            platforms = os.environ.get("JAX_PLATFORMS")
            remedy = (
                f"unset JAX_PLATFORMS, which is {platforms!r}"
                if platforms
                else "install requirements-cuda.txt"
            )
            sys.exit(
                f"JAX finds no GPU here, only {ours['card']}: {remedy}; --toy runs all "
                "parts at toy sizes on CPU"
            )
        facts |= {
            "card": ours["card"],
            "driver": find_driver(),
            "python": platform.python_version(),
        }
        for name in facts.keys() & self.facts.keys():
            if facts[name] != self.facts[name]:
                sys.exit(
                    f"{self.arguments.write} has rows that were measured with other "
                    f"versions or another card: {name} was {self.facts[name]}, and is "
                    f"{facts[name]}; --write another file"
                )
        self.facts = self.facts | facts | {"date": now()}
        self.has_asked = True
        self.print_head()

    def print_head(self) -> None:
        """Prints what was measured with, and rows of an earlier call that stay."""
        ours = self.facts["JAX"]
        versions = [f"jax {ours['jax']}", f"Python {self.facts['python']}"]
        if "PyTorch" in self.facts:
            theirs = self.facts["PyTorch"]
            versions.append(
                f"PyTorch {theirs['torch']} ({self._way_of_torch()}; "
                f"CUDA {theirs['cuda']}, cuDNN {theirs['cudnn']})"
            )
        tf32 = "with" if self.arguments.tf32 else "without"
        print(
            f"{ours['card']}, driver {self.facts['driver'] or 'unknown'}; "
            f"{', '.join(versions)}; float32 {tf32} TF32 on both sides; "
            f"{self.facts['date']}\n\n| {' | '.join(COLUMNS)} |\n"
            + "| --- " * len(COLUMNS)
            + "|",
            flush=True,
        )
        measured_again = {
            group.key(part) for group in self.planned for part in group.parts
        }
        for row in self.rows:
            if row.key not in measured_again:
                print(format_row(row, self.peak(row)), flush=True)

    def _way_of_torch(self) -> str:
        compiled = "eager" if self.arguments.eager else "torch.compile"
        return f"{compiled}, channels_last, autocast for bfloat16"

    def write(self) -> None:
        """Writes all so far to the file, if there is to be one."""
        if self.arguments.write is None or not self.facts:
            return
        card = find_card(self.facts["card"])
        contents = {
            "command": shlex.join(sys.argv),
            "facts": self.facts,
            "settings": settings_of(self.arguments),
            "peaks": card and dataclasses.asdict(card),
            "rows": [row.to_dict(self.peak(row)) for row in self.rows],
            "left_out": self.left_out,
        }
        save(self.arguments.write, contents)

    def conclude(self) -> int:
        """Prints what was left out and what had errors; returns the exit code."""
        if self.rows and not self.has_asked:
            self.print_head()
        if self.left_out:
            print(f"\nLeft out, for the time was up: {'; '.join(self.left_out)}.")
        failed = [
            f"{row.title} ({', '.join(row.problems)})"
            for row in self.rows
            if row.problems
        ]
        if failed:
            print(f"\nWith errors: {'; '.join(failed)}.")
        return 1 if failed else 0


def close(sides: Mapping[str, Side]) -> None:
    """Ends processes at once."""
    for side in sides.values():
        side.kill()
        side.close()


def step_of(part: str, config: Config) -> tuple[int, float]:
    """Returns how many images a step of a part has, and its FLOPs."""
    options = vars(config.model) | {"dtype": "float32"}  # which changes no count
    count = functools.partial(multiply_adds, tuple(sorted(options.items())))
    if part.startswith("dense"):
        batches = dense_batches(config, int(part.partition("=")[2]))
        needed = sum(batch.count * count(batch.size) for batch in batches)
        both = 2  # the image and its mirror image
        return sum(batch.count for batch in batches), 2.0 * both * needed
    passes = 3 if part.startswith("train") else 1
    side = config.data.crop
    return config.batch_size, 2.0 * passes * config.batch_size * count((side, side))


@functools.cache
def multiply_adds(options: tuple[tuple[str, Any], ...], size: Shape) -> int:
    """Returns the multiply-adds of a network for an image of a height and a width.

    The options are those of `create_model`, its name among them.
    """
    named = dict(options)
    return summary(named.pop("name"), size, **named).multiply_adds


def find_driver() -> str | None:
    """Returns the version of NVIDIA's driver, if its program says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)


def find_torch(arguments: argparse.Namespace) -> str | None:
    """Returns the interpreter to run PyTorch with; None runs JAX alone."""
    if arguments.alone:
        return None
    if arguments.torch is None and importlib.util.find_spec("torch") is not None:
        return sys.executable
    return str(arguments.torch) if arguments.torch else None


def chosen(plan: Iterable[Group], arguments: argparse.Namespace) -> Iterator[Group]:
    """Yields the groups of the plan as far as the command line asks for them."""
    for group in plan:
        parts = tuple(
            part
            for part in group.parts
            if not arguments.part or kind_of(part) in arguments.part
        )
        if parts and group.dtype in (arguments.dtype or DTYPES):
            yield dataclasses.replace(group, parts=parts)


def without_rows(plan: Iterable[Group], rows: Iterable[Row]) -> Iterator[Group]:
    """Yields the groups of the plan without the parts that have a row already."""
    keys = {row.key for row in rows}
    for group in plan:
        parts = tuple(part for part in group.parts if group.key(part) not in keys)
        if parts:
            yield dataclasses.replace(group, parts=parts)


def settings_of(arguments: argparse.Namespace) -> dict[str, bool]:
    """Returns what all rows of a file have alike, beside what they run on."""
    return {name: getattr(arguments, name) for name in ("tf32", "eager", "toy")}


def go_on(benchmark: Benchmark) -> None:
    """Gives a benchmark what an earlier call wrote into its file.

    Raises:
        ValueError: the file is damaged, or was made with other settings.
    """
    file, settings = benchmark.arguments.write, settings_of(benchmark.arguments)
    contents = read_json(file)
    names = [field.name for field in dataclasses.fields(Row)]
    try:
        facts, before = contents["facts"], dict(contents["settings"])
        _ = facts["JAX"]["jax"], facts["card"], facts["driver"], facts["python"]
        rows = [
            Row(**{name: values[name] for name in names}) for values in contents["rows"]
        ]
        left_out = list(contents["left_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected what --write makes, and found something else "
            f"({type(error).__name__}: {error}); write another file"
        ) from error
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{file} has rows with {name} {before.get(name)}, and {name} is "
                f"{value} now; write another file"
            )
    benchmark.facts, benchmark.rows, benchmark.left_out = facts, rows, left_out


def is_done(row: Row, has_torch: bool) -> bool:
    """Returns whether a row of an earlier call need not be measured again.

    Args:
        row: the row.
        has_torch: whether PyTorch is there now.
    """
    is_of_both = row.part in TIMED or row.part == "logits"
    has_both = "PyTorch" in row.seconds or bool(row.numbers)
    is_whole = has_both or not (is_of_both and has_torch)
    return is_whole and not row.problems and not row.is_cut_short


def main(command_line: Sequence[str] | None = None) -> int:
    """Prints the table, row by row; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"that it may take; {MINUTES:g} by default, of --toy as long as it takes",
    )
    parser.add_argument("--write", metavar="FILE", help="of JSON")
    parser.add_argument(
        "--go_on",
        action="store_true",
        help="keep the rows of the file of --write, and measure what it lacks",
    )
    parser.add_argument(
        "--torch",
        metavar="PYTHON",
        help="an interpreter that has PyTorch; by default this one, if it has",
    )
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument(
        "--eager", action="store_true", help="PyTorch without torch.compile"
    )
    parser.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="products of float32 in 10 bits, on both sides; on by default",
    )
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument(
        "--part",
        action="append",
        choices=(*TIMED, "logits", "loop", "dense"),
        help="all by default, as of networks and types",
    )
    parser.add_argument(
        "--turns", type=int, help="of each side, a part; 5 by default, 2 of --toy"
    )
    parser.add_argument("--seconds", type=float, help="of a turn; 0.6 by default")
    parser.add_argument(
        "--loop_steps",
        type=int,
        help=f"of the training loop; by default about {LOOP_SECONDS:.0f} seconds of it",
    )
    parser.add_argument(
        "--toy",
        action="store_true",
        help="all parts at toy sizes, on CPU, to see that they run",
    )
    arguments = parser.parse_args(command_line)
    if arguments.go_on and arguments.write is None:
        parser.error("--go_on needs --write FILE, whose rows it keeps")
    is_toy = arguments.toy
    for name, toy, usual in (
        ("minutes", math.inf, MINUTES),
        ("turns", 2, 5),
        ("seconds", TOY_SECONDS, 0.6),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, toy if is_toy else usual)
    if not (arguments.minutes > 0 < arguments.seconds) or arguments.turns < 1:
        parser.error("expected --minutes and --seconds above 0, and at least one turn")
    clock = Clock(60 * arguments.minutes - OUTSIDE)
    jax.config.update("jax_platforms", "cpu")  # the card is for the sides
    scales = TOY_SCALES if arguments.toy else SCALES
    plan = make_plan(arguments.network or NETWORKS, scales)
    plan = list(chosen(plan, arguments))
    with tempfile.TemporaryDirectory() as folder:
        torch = find_torch(arguments)
        if torch is None and not arguments.alone:
            print("no PyTorch here; --torch PYTHON names one that has it", flush=True)
        benchmark = Benchmark(arguments, torch, Path(folder), clock)
        try:
            if arguments.write is not None:
                arguments.write = writable(arguments.write)
                if arguments.go_on and arguments.write.exists():
                    go_on(benchmark)
                    done = [r for r in benchmark.rows if is_done(r, torch is not None)]
                    plan = list(without_rows(plan, done))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        benchmark.run(plan)
    benchmark.write()
    return benchmark.conclude()


if __name__ == "__main__":
    sys.exit(main())

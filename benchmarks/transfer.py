"""Compares ways to learn from few pictures: emoji drawings, by their Unicode group.

    npm pack emoji-datasource-google@16.0.0    # Noto Emoji, Apache-2.0
    npm pack emoji-datasource-twitter@16.0.0   # Twemoji, CC-BY 4.0
    python -m benchmarks.transfer --google FILE.tgz --twitter FILE.tgz \\
        --weights vgg16.ckpt --pictures DIR [--sheet FILE.jpg]

Trains on Google's drawings of 70% of the symbols, with 10, 50 or all of them a class,
and tests on the other symbols, as Google and as Twitter draw them: no symbol of the
test was seen, and no drawing of Twitter's. Three ways: the frozen features of VGG-16
and a new last layer; then also its last three convolutions, at a tenth of the rate; and
the small network of configs/transfer.py from random weights. Rates and numbers of steps
are the same for all sizes and were not tuned; the state after the last step is tested.
Prints a Markdown table.
"""

import argparse
import dataclasses
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.transfer import from_nothing, from_weights
from vgg_jax.config import Config
from vgg_jax.data import transforms
from vgg_jax.data.base import hash_fraction
from vgg_jax.data.folder import Folder, list_classes
from vgg_jax.data.pipeline import train_batches
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.evaluation.predictions import Rate, wilson
from vgg_jax.inference.passes import View, over_source
from vgg_jax.training.kept_maps import KeptMaps
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.optimizer import set_learning_rate
from vgg_jax.training.pretrained import load_pretrained, with_normalization
from vgg_jax.training.program import Program, abstract_model, build_program
from vgg_jax.training.schedule import Plateau, Timetable, learning_rate_at
from vgg_jax.training.steps import TrainState, split

SIDE = 64  # pixels of the drawings
TEST_SHARE = 0.3  # of the symbols
SIZES = (10, 50, None)  # training pictures a class; None for all
BATCH = 32
STEPS = {"frozen": 300, "fine-tuned": 120, "from scratch": 400}
LAST_BLOCK = ("conv5_1", "conv5_2", "conv5_3", "fc8")
METRICS = ExampleMetrics(CLASSIFICATION.objective, with_boxes=False)


def unpack(archive: Path, vendor: str, output: Path) -> None:
    """Writes a vendor's drawings on white: output/VENDOR-train|test/GROUP/SYMBOL.png.

    Drawings of people in other skin tones are left out.
    """
    with tarfile.open(archive) as files:
        symbols = json.load(_member(files, "package/emoji.json"))
        for symbol in symbols:
            group = symbol["category"]
            if group == "Component" or not symbol[f"has_img_{vendor}"]:
                continue
            is_test = hash_fraction("test", symbol["unified"]) < TEST_SHARE
            name = f"package/img/{vendor}/64/{symbol['image']}"
            drawing = np.frombuffer(_member(files, name).read(), np.uint8)
            pixels: Any = cv2.imdecode(drawing, cv2.IMREAD_UNCHANGED)
            alpha = pixels[..., 3:] / 255
            opaque = pixels[..., :3] * alpha + 255 * (1 - alpha)
            folder = output / f"{vendor}-{'test' if is_test else 'train'}" / group
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(folder / symbol["image"]), np.round(opaque).astype(np.uint8)
            )


def _member(files: tarfile.TarFile, name: str) -> io.BufferedReader:
    member = files.extractfile(name)
    if member is None:
        raise ValueError(f"expected a file {name} in {files.name!r}")
    return member  # type: ignore[return-value]


def open_pictures(root: Path, most: int | None = None) -> Folder:
    """Opens drawings, of each group `most` or all: those of the smallest hashes."""
    files = {
        group: sorted(
            sorted(names, key=lambda name: hash_fraction("order", name))[:most]
        )
        for group, names in list_classes(root).items()
    }
    return Folder(root, files)


def draw_sheet(root: Path, sheet: Path) -> None:
    """Draws five symbols of each group as both vendors draw them: a row a group."""
    rows = []
    for group, names in list_classes(root / "google-test").items():
        cells = []
        for name in names[:: max(1, len(names) // 5)][:5]:
            for vendor in ("google", "twitter"):
                path = root / f"{vendor}-test" / group / name
                drawing: Any = cv2.imread(str(path))
                edges = ((4, 4), (4, 4), (0, 0))
                cells.append(np.pad(drawing, edges, constant_values=255))
        rows.append(np.hstack(cells))
    cv2.imwrite(str(sheet), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])


def prepared(config: Config, num_classes: int, steps: int, examples: int) -> Config:
    """Returns a configuration for drawings, with so many classes and steps."""
    data = dataclasses.replace(
        config.data, crop=SIDE, scale_min=SIDE, scale_max=SIDE, flip=False
    )
    evaluation = dataclasses.replace(
        config.evaluation, center_scale=SIDE, scales=(SIDE,), batch_size=BATCH
    )
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, metric="top1_error"),
        model=dataclasses.replace(config.model, num_classes=num_classes),
        data=data,
        evaluation=evaluation,
        batch_size=BATCH,
        num_epochs=steps * BATCH / examples,
    )


def fit(
    config: Config,
    program: Program,
    state: TrainState,
    batches: Any,
    examples: int,
    key: jax.Array,
) -> TrainState:
    """Trains to the end of the configuration's epochs; the key is of the dropout."""
    timetable = Timetable.for_config(config, examples)
    for step in range(timetable.total_steps):
        rate = learning_rate_at(step, timetable, Plateau(), config.optimizer)
        opt_state = set_learning_rate(state.opt_state, rate)
        batch = shard_batch(make_mesh(), next(batches))
        state, _ = program.train_step(
            dataclasses.replace(state, opt_state=opt_state), batch, key
        )
    return state


def subset(kept: KeptMaps, whole: Folder, part: Folder) -> KeptMaps:
    """Returns the maps of the pictures of `whole` that `part` has too."""
    numbers = {whole[i]["name"]: i for i in range(len(whole))}
    rows = np.array([numbers[part[i]["name"]] for i in range(len(part))])
    return dataclasses.replace(
        kept,
        maps=kept.maps[rows],
        labels=kept.labels[rows],
        weights=kept.weights[rows],
    )


def advance(kept: KeptMaps, config: Config, state: TrainState, rows: int) -> KeptMaps:
    """Runs the rows of the network from those that made the maps to number `rows`."""
    graphdef = split(abstract_model(config))[0]

    @jax.jit
    def run(params: Any, maps: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params, {})
        return model.run(maps, model.layers[kept.rows : rows], train=False)

    parts = [
        np.asarray(run(state.params, kept.maps[i : i + BATCH, 0]))
        for i in range(0, len(kept.maps), BATCH)
    ]
    return dataclasses.replace(kept, maps=np.concatenate(parts)[:, None], rows=rows)


class FromWeights:
    """The frozen and the fine-tuned network, on the maps that both begin with."""

    def __init__(self, weights: Path, train: Folder, tests: Mapping[str, Folder]):
        classes = len(train.class_names)
        config = prepared(from_weights(str(weights), 0, BATCH), classes, 1, BATCH)
        pretrained = load_pretrained(config, str(weights))
        self.config = with_normalization(config, pretrained.loaded.normalization)
        tuned = self.settings("fine-tuned", len(train))
        program = build_program(tuned, make_mesh())
        self.start = pretrained.put_into(program.init(jax.random.key(0)), "glorot")
        started = time.time()

        def keep(source: Folder) -> KeptMaps:
            return KeptMaps.of_source(
                program.network(self.start),
                source,
                tuned,
                make_mesh(),
                rows=program.first_row,
                flip=False,
            )

        self.train, self.before_block = train, keep(train)
        self.tests = {name: keep(source) for name, source in tests.items()}
        images = len(train) + sum(map(len, tests.values()))
        print(f"{images} pictures in {time.time() - started:.0f} s", file=sys.stderr)
        first = build_program(
            self.settings("frozen", len(train)), make_mesh()
        ).first_row
        self.before_head = advance(self.before_block, tuned, self.start, first)

    def settings(self, way: str, examples: int) -> Config:
        """Returns the configuration of one of the two ways."""
        config = prepared(
            self.config, self.config.model.num_classes or 0, STEPS[way], examples
        )
        optimizer = config.optimizer
        if way == "fine-tuned":
            optimizer = dataclasses.replace(
                optimizer, trained_layers=LAST_BLOCK, layer_rates={"conv": 0.1}
            )
        return dataclasses.replace(config, optimizer=optimizer)

    def errors(self, part: Folder) -> Iterator[tuple[str, dict[str, Rate]]]:
        """Trains the last layer, then the last block too; gives the errors of both."""
        params = self.start.params
        for way, kept in (
            ("frozen", self.before_head),
            ("fine-tuned", self.before_block),
        ):
            config = self.settings(way, len(part))
            program = build_program(config, make_mesh())
            state = program.init(jax.random.key(0))
            state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params))
            maps = subset(kept, self.train, part)
            batches = maps.train_batches(batch_size=BATCH, seed=0, start_step=0)
            state = fit(config, program, state, batches, len(part), jax.random.key(1))
            params = state.params
            yield (
                way,
                {
                    name: top1_error(
                        test.measure(
                            program.network(state), METRICS, BATCH, lambda: None
                        )
                    )
                    for name, test in self.tests.items()
                },
            )


def scratch_errors(part: Folder, tests: Mapping[str, Folder]) -> dict[str, Rate]:
    """Trains the small network of configs/transfer.py from random weights."""
    config = prepared(
        from_nothing("", 0, BATCH),
        len(part.class_names),
        STEPS["from scratch"],
        len(part),
    )
    program = build_program(config, make_mesh())
    batches = train_batches(
        part, config.data, channels=3, batch_size=BATCH, seed=0, start_step=0
    )
    state = program.init(jax.random.key(0))
    state = fit(config, program, state, batches, len(part), jax.random.key(1))
    view = View(SIDE, transforms.center)
    return {
        name: top1_error(
            over_source(program.network(state), METRICS, test, config, view)
        )
        for name, test in tests.items()
    }


def top1_error(rows: Mapping[str, np.ndarray]) -> Rate:
    """Returns the share of wrong examples with its interval."""
    return wilson(int(rows["top1_error"].sum()), int(rows["weight"].sum()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("google", "twitter", "weights", "pictures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, help="a picture of some drawings")
    values = parser.parse_args(arguments)
    root = values.pictures
    for vendor in ("google", "twitter"):
        if not (root / f"{vendor}-train").exists():
            unpack(getattr(values, vendor), vendor, root)
    if values.sheet is not None:
        draw_sheet(root, values.sheet)
    train = open_pictures(root / "google-train")
    tests = {
        vendor: open_pictures(root / f"{vendor}-test")
        for vendor in ("google", "twitter")
    }
    print(
        f"{len(train)} drawings to train on, {len(train.class_names)} groups; tests: "
        + ", ".join(f"{len(test)} of {name}" for name, test in tests.items())
    )
    pretrained = FromWeights(values.weights, train, tests)
    print("\n| a class | way | seconds | Google's, error % | Twitter's, error % |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for most in SIZES:
        part = open_pictures(root / "google-train", most)
        size = f"{most or 'all'} ({len(part)})"
        started = time.time()
        for way, errors in pretrained.errors(part):
            print_row(size, way, started, errors)
            started = time.time()
        print_row(size, "from scratch", started, scratch_errors(part, tests))


def print_row(size: str, way: str, started: float, errors: Mapping[str, Rate]) -> None:
    """Prints a row of the table."""
    cells = [
        f"{100 * rate.value:.1f} ± {100 * rate.half_width:.1f}"
        for rate in errors.values()
    ]
    seconds = f"{time.time() - started:.0f}"
    print(f"| {size} | {way} | {seconds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

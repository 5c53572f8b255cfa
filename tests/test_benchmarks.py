"""Every benchmark runs: its smallest case, and the text that it prints."""

import dataclasses
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from benchmarks import (
    cpu,
    data,
    dense,
    host,
    large_batch,
    losses,
    losses_in_jax,
    record,
    sides,
    soak,
    start,
    transfer,
    transfer_classes,
    worker,
)
from benchmarks.cases import make_case
from tests.weights.networks import random_network
from vgg_jax.config import Config, VGGConfig
from vgg_jax.data.base import Subset
from vgg_jax.distributed import make_mesh
from vgg_jax.inference import passes
from vgg_jax.preprocessing import IMAGENET
from vgg_jax.training import loop
from vgg_jax.weights import save_weights

SMALLEST = make_case(
    VGGConfig(name="vgg11", width=1 / 64, num_classes=10, fc_kernel=1), 32, 8
)

Printed = pytest.CaptureFixture[str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_jax_alone_on_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Printed
) -> None:
    monkeypatch.setitem(cpu.CASES, "smallest", SMALLEST)
    quick = ["--part=forward", "--launches=1", "--turns=1", "--seconds=0.01"]
    file = tmp_path / "new" / "cpu.json"
    cpu.main(["smallest", *quick, f"--write={file}"])
    machine, _, names, _, row = capsys.readouterr().out.splitlines()
    assert f"jax {jax.__version__}" in machine and "cores" in machine
    assert cells(names) == ["network", "part", "JAX images/s"]
    assert cells(row)[:2] == ["smallest", "forward"] and number(cells(row)[2]) > 0
    written = json.loads(file.read_text())
    assert written["versions"][0]["jax"] == jax.__version__
    assert {"processor", "cores", "date", "command"} <= written.keys()
    [kept] = written["rows"]
    assert f"{kept['images_per_second'][0][0]:,.1f}" == cells(row)[2]


def test_a_table_has_medians_and_spread() -> None:
    assert record.spread([2.0, 1000.0, 4.0]) == "4 (2 to 1,000)"
    assert record.spread([2.25], 1) == "2.2"


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="Not a directory"):
        start.main([f"--write={tmp_path}/file/a.json"])
    with pytest.raises(SystemExit, match="name a file, got the folder"):
        start.main([f"--write={tmp_path}"])


def test_an_interpreter_that_is_none_is_told_of() -> None:
    with pytest.raises(SystemExit, match="expected an interpreter of Python, got /no"):
        cpu.main(["--torch=/no/python"])


def write_side(root: Path, name: str, answers: dict[str, Any]) -> None:
    """Writes a program that answers as one of the sides of a benchmark does."""
    program = (
        "import json, sys\n"
        f"answers = json.loads({json.dumps(answers)!r})\n"
        "for line in sys.stdin:\n"
        "    reply = {'answer': answers[json.loads(line)]}\n"
        "    print(json.dumps(reply), flush=True)\n"
    )
    (root / "benchmarks").mkdir(exist_ok=True)
    (root / "benchmarks" / f"{name}.py").write_text(program)


def test_beside_another_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Printed
) -> None:
    """The sides are programs that answer as those of the benchmark do."""
    for side, seconds in (("in_jax", 0.5), ("in_torch", 1.0)):
        answers = {"parameters": 7, "forward": seconds, "train": seconds}
        write_side(tmp_path, side, answers)
    monkeypatch.setattr(sides, "ROOT", tmp_path)
    monkeypatch.setitem(cpu.CASES, "smallest", SMALLEST)
    cpu.main(["smallest", f"--torch={sys.executable}", "--launches=1", "--turns=1"])
    _, _, names, _, *rows = capsys.readouterr().out.splitlines()
    assert cells(names)[2:] == ["JAX images/s", "PyTorch images/s", "ratio"]
    assert [cells(row)[1:] for row in rows] == [
        [part, "16.0", "8.0", "2.00"] for part in cpu.PARTS
    ]


def test_the_ratio_is_that_of_neighboring_turns() -> None:
    # Both are slow in the second; the medians of each alone would give 8.
    assert sides.median_ratio([(1, 2), (10, 20), (1, 4), (1, 8), (10, 20)]) == 2


def test_networks_of_different_sizes_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_side(tmp_path, "in_jax", {"parameters": 7})
    write_side(tmp_path, "in_torch", {"parameters": 8})
    monkeypatch.setattr(sides, "ROOT", tmp_path)
    monkeypatch.setitem(cpu.CASES, "smallest", SMALLEST)
    with pytest.raises(SystemExit, match=r"not the same network.* 7 .* 8 in"):
        cpu.main(["smallest", f"--torch={sys.executable}", "--launches=1"])


def test_a_side_that_stops_or_is_late_is_told_of_and_can_start_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mortal.py").write_text(
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    if 'sleep' in line: time.sleep(60)\n"
        "    if 'stop' in line: sys.exit('no more of this')\n"
        "    print('{\"answer\": 3}', flush=True)\n"
    )
    monkeypatch.setattr(sides, "ROOT", tmp_path)
    with sides.closing([sides.Side(sys.executable, "mortal", {})]) as [side]:
        assert side.ask("number") == 3
        with pytest.raises(sides.OutOfTime):
            side.ask("sleep", 0.1)
        with pytest.raises(sides.Unanswered, match="stopped with code -9"):
            side.ask("number")
        side.start_if_ended()
        assert side.ask("number", 60) == 3
        with pytest.raises(sides.Unanswered, match="code 1: no more of this"):
            side.ask("stop")


def test_a_worker_answers_until_there_are_no_more_requests() -> None:
    taken: list[int] = []

    def fail() -> Callable[[], float]:
        raise ValueError("not\nnow")

    parts: worker.Parts = {
        "parameters": lambda: lambda: 7,
        "forward": lambda: worker.timed(taken.append, 1e-9),
        "train": fail,
    }
    requests = ["parameters", "forward", "forward", "train", "parameters"]
    lines = [f"{json.dumps(request)}\n" for request in requests]
    replies = io.StringIO()
    worker.serve(lambda: parts, lines, replies)
    answers = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert answers[0] == answers[-1] == {"answer": 7}
    assert min(answers[1]["answer"], answers[2]["answer"]) > 0
    assert taken == [1, 1, 1, 1]  # compiles, is timed once, answers twice
    assert answers[3] == {"error": "ValueError: not"}


def test_lpips_beside_its_authors_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Printed
) -> None:
    """The sides are programs that answer as those of the benchmark do."""
    for side, seconds in (("jax", 0.5), ("torch", 1.0)):
        answers = dict.fromkeys(losses.PARTS.values(), seconds) | {"parameters": 7}
        write_side(tmp_path, f"losses_in_{side}", answers)
    monkeypatch.setattr(sides, "ROOT", tmp_path)
    losses.main([f"--torch={sys.executable}", "--launches=1", "--turns=1"])
    _, _, names, _, *rows = capsys.readouterr().out.splitlines()
    assert cells(names) == ["LPIPS", "JAX pairs/s", "lpips pairs/s", "ratio"]
    assert [cells(row) for row in rows] == [
        [part, "4.00", "2.00", "2.00"] for part in losses.PARTS
    ]


def test_steps_of_lpips_are_timed() -> None:
    parts = losses_in_jax.open_parts(size=16, batch_size=1, width=1 / 64, seconds=1e-9)
    give = worker.Answers(lambda: parts)
    assert give("parameters") == sum(
        array.size for array in jax.tree.leaves(losses_in_jax.make_lpips(1 / 64))
    )
    assert min(give(request) for request in losses.PARTS.values()) > 0


def test_rates_of_the_input_pipeline(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(data, "SECONDS", 0.001)
    monkeypatch.setattr(data, "BATCH", 2)
    monkeypatch.setattr(data, "SIZES", ((320, 240),))
    monkeypatch.setattr(data, "READERS", ((0, 1),))
    monkeypatch.setattr(data, "SIDES", (28,))
    monkeypatch.setattr(data, "FASHION_MNIST_IMAGES", 200)
    data.main([])
    lines = capsys.readouterr().out.splitlines()
    assert "320x240" in lines[3] and "normalization, cpu" in lines
    rates = [number(line.split()[-4]) for line in lines if line[:2] == "  "]
    assert len(rates) == 20 and min(rates) > 0


def test_dense_evaluators_agree(tmp_path: Path, capsys: Printed) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 30, 3), np.uint8)
    picture = cv2.resize(noise, (480, 320), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "noise.png"), picture)
    small = ["--network=vgg11", "--width=0.015625", "--scale=224"]
    dense.main([f"--photos={tmp_path}", "--count=1", "--batch_size=1", *small])
    shapes, buckets, largest = map(json.loads, capsys.readouterr().out.splitlines())
    assert shapes["evaluator"] == "one_program_a_shape"
    assert buckets["evaluator"] == "buckets" and buckets["count"] == 1
    assert largest["largest_difference"] < 1e-4


def test_the_start_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Of a program that prints what train.py does; the slow test has the real one."""
    (tmp_path / "train.py").write_text("print('vgg11: ...')\nprint('step 1/9  ...')\n")
    monkeypatch.setattr(start, "ROOT", tmp_path)
    start.main(["--config", "any.py"])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("first start: first step after ")
    assert second.startswith("second start: first step after ")
    (tmp_path / "train.py").write_text("print('error: ...')\n")
    with pytest.raises(SystemExit, match=r"train\.py took no step"):
        start.main(["--config", "any.py"])


def pack_emoji(path: Path, vendor: str) -> None:
    """Writes a package of drawings of one color a group, as the npm packages are."""
    symbols, drawings = [], {}
    for group, color in (("Animals", 60), ("Flags", 200)):
        for i in range(12):
            image = f"{group[0].lower()}{i}.png"
            pixels = np.full((64, 64, 4), color + i, np.uint8)
            drawings[image] = cv2.imencode(".png", pixels)[1].tobytes()
            symbols.append(
                {
                    "category": group,
                    "unified": f"u{i}",  # of a hash: as many of both are tests
                    "image": image,
                    f"has_img_{vendor}": i != 11,
                }
            )
    symbols.append({"category": "Component", "unified": "x", f"has_img_{vendor}": True})
    files = {f"img/{vendor}/64/{name}": data for name, data in drawings.items()}
    files["emoji.json"] = json.dumps(symbols).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_ways_to_learn_from_few_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """A narrow VGG-11 in place of VGG-16, and few steps on drawings of two groups."""
    narrow = {"name": "vgg11", "width": 1 / 64}
    for name in ("from_weights", "from_nothing"):
        make = getattr(transfer, name)

        def made(*arguments: object, make: Callable[..., Config] = make) -> Config:
            config = make(*arguments)
            model = dataclasses.replace(config.model, **narrow)
            return dataclasses.replace(config, model=model)

        monkeypatch.setattr(transfer, name, made)
    monkeypatch.setattr(transfer, "SIZES", (4,))
    monkeypatch.setattr(transfer, "SIDE", 32)
    monkeypatch.setattr(transfer, "BATCH", 8)
    monkeypatch.setattr(transfer, "STEPS", dict.fromkeys(transfer.STEPS, 2))
    last_block = tuple(n for n in transfer.LAST_BLOCK if n != "conv5_3")  # of VGG-16
    monkeypatch.setattr(transfer, "LAST_BLOCK", last_block)
    flags = [f"--pictures={tmp_path / 'pictures'}", f"--sheet={tmp_path / 'sheet.jpg'}"]
    for vendor in ("google", "twitter"):
        pack_emoji(tmp_path / f"{vendor}.tgz", vendor)
        flags.append(f"--{vendor}={tmp_path / vendor}.tgz")
    weights = tmp_path / "vgg11.safetensors"
    backbone = random_network(width=1 / 64, num_classes=None)
    save_weights(backbone, weights, normalization=IMAGENET)
    transfer.main([*flags, f"--weights={weights}"])
    lines = capsys.readouterr().out.splitlines()
    counts = {
        name: sum(1 for _ in (tmp_path / "pictures" / name).rglob("*.png"))
        for name in ("google-train", "google-test", "twitter-test")
    }
    assert counts["google-train"] + counts["google-test"] == 22
    assert counts["google-test"] == counts["twitter-test"] > 0
    title = next(line for line in lines if "drawings to train on" in line)
    assert title == (
        f"{counts['google-train']} drawings to train on, 2 groups; tests: "
        f"{counts['google-test']} of google, {counts['twitter-test']} of twitter"
    )
    rows = [cells(line) for line in lines[-3:]]
    assert [row[:2] for row in rows] == [
        ["4 (8)", way] for way in ("frozen", "fine-tuned", "from scratch")
    ]
    for row in rows:
        for rate in row[3:]:
            error, half_width = map(float, rate.split(" ± "))
            assert 0 <= error <= 100 and 0 < half_width <= 50
    assert cv2.imread(str(tmp_path / "sheet.jpg")) is not None


@pytest.mark.slow
def test_the_start_of_train_py_itself(tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = tmp_path / "pictures" / "train" / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = np.full((32, 32), 8 * i, np.uint8)
            cv2.imwrite(str(folder / f"{i}.png"), pixels)
    config = tmp_path / "tiny.py"
    config.write_text(
        "from configs.fashion_mnist_vgg import get_config as standard\n"
        "def get_config():\n"
        "    config = standard()\n"
        "    config.model.num_classes, config.model.width = 2, 0.05\n"
        "    config.optimizer.metric = 'top1_error'\n"
        "    config.data.dataset = 'folder'\n"
        f"    config.data.data_dir = '{tmp_path}/pictures'\n"
        "    config.data.validation_fraction = 0.25\n"
        "    config.batch_size = 4\n"
        "    return config\n"
    )
    seconds = start.seconds_to_first_step(
        str(config), tmp_path / "run", tmp_path / "cache"
    )
    assert seconds > 0


def test_ways_to_learn_other_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, small_vgg: str
) -> None:
    config = transfer_classes.get_config()
    narrow = dataclasses.replace(
        config.model, name=small_vgg, batch_norm=True, width=1 / 64
    )
    one = make_mesh(jax.devices()[:1])
    for module in (transfer, transfer_classes, passes):
        monkeypatch.setattr(module, "make_mesh", lambda *_: one)
    monkeypatch.setattr(
        transfer_classes,
        "get_config",
        lambda: dataclasses.replace(config, model=narrow),
    )
    whole = transfer_classes.open_source(config.data, "train")
    some = Subset(whole, np.arange(200))
    monkeypatch.setattr(transfer_classes, "open_source", lambda *_: some)
    monkeypatch.setattr(transfer_classes, "SIZES", (3,))
    transfer_classes.main(["--seeds=2", "--steps=2", "--first_steps=2"])
    printed = capsys.readouterr()
    assert printed.err.count("the first five: ") == 2
    _, _, *rows = printed.out.splitlines()
    assert [cells(row)[1] for row in rows] == [*transfer_classes.WAYS]
    for row in rows:
        size, _, seconds, error, spread = cells(row)
        assert size == "3 (15)" and number(seconds) >= 0
        lowest, highest = map(float, spread.split(" to "))
        assert 0 <= lowest <= float(error.split(" ")[0]) <= highest <= 100


def test_what_a_step_costs_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    one = make_mesh(jax.devices()[:1])
    monkeypatch.setattr(loop, "make_mesh", lambda: one)
    host.main(["--network=vgg11", "--steps=160"])
    printed = capsys.readouterr()
    _, _, title, _, names, _, *rows = printed.out.splitlines()
    assert title.startswith("1 x cpu, ") and "vgg11, 47 arrays of state" in title
    assert cells(names)[1:] == ["elapsed", "computed"]
    assert cells(rows[0])[0] == "a step of the loop" and len(rows) == 4
    elapsed, computed = map(number, cells(rows[0])[1:])
    assert computed > sum(number(cells(row)[2]) for row in rows[1:]) / 3 > 0
    assert elapsed > computed / 2


def test_large_batches_beside_small_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Of trainings that end at once; `test_configs` has the recipe."""
    trained = []

    def train(config: Config, workdir: str) -> None:
        trained.append(config)
        Path(workdir).mkdir()
        row = {"validation_top1_error": 0.125 * len(trained)}
        (Path(workdir) / "metrics.jsonl").write_text(f"{{}}\n{json.dumps(row)}\n")

    monkeypatch.setattr(large_batch, "train", train)
    large_batch.main(["--width=0.25", "--epochs=3", "--validation_only"])
    _, _, names, _, *rows = map(cells, capsys.readouterr().out.splitlines())
    assert names[:2] == ["recipe", "batch"] and names[-1] == "validation error"
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("SGD", "32", "12.50%"),
        ("LARS", "1,024", "25.00%"),
        ("SGD, scaled", "1,024", "37.50%"),
    ]
    small, lars, scaled = trained
    for config in trained:
        assert config.num_epochs == 3 and config.model.width == 0.25
        assert config.optimizer.schedule == lars.optimizer.schedule
    assert small.optimizer.name == scaled.optimizer.name == "sgd"
    same = dataclasses.replace(scaled, optimizer=lars.optimizer)
    assert same == lars


def test_recipes_of_larger_batches_keep_the_steps_of_kernels() -> None:
    usual = large_batch.recipes(0.125, 14)["LARS"].optimizer
    small, lars, _ = large_batch.recipes(0.125, 30, 128, 4).values()
    assert (small.batch_size, lars.batch_size) == (128, 4096)
    rates = [config.optimizer.learning_rate for config in (small, lars)]
    np.testing.assert_allclose(rates, [0.1, 3.2])
    np.testing.assert_allclose(
        lars.optimizer.trust_coefficient * lars.optimizer.learning_rate,
        usual.trust_coefficient * usual.learning_rate,
    )
    warmups = [config.optimizer.warmup_epochs for config in (small, lars)]
    assert warmups == [4, 4] and lars.num_epochs == 30


@pytest.mark.parametrize(
    "name",
    [
        *("cpu", "dense", "gpu", "host", "large_batch", "losses", "soak", "start"),
        "transfer",
    ],
)
def test_commands_have_a_help(name: str, capsys: Printed) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"usage: python -m benchmarks.{name}" in capsys.readouterr().out


def test_soak_counts_what_a_process_takes() -> None:
    before = soak.measure(os.getpid())
    with open(os.devnull) as _, open(os.devnull) as _:
        memory, threads, descriptors = soak.measure(os.getpid())
    assert memory > 0 and threads >= 1
    assert descriptors == before[2] + 2
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in set(soak.descendants(os.getpid()))
        child.kill()

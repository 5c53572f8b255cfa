"""The scripts as a user runs them: train, stop, go on, evaluate; and bad input."""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from tests.shapes import draw_shapes
from vgg_jax.interrupt import GRACE_SECONDS
from vgg_jax.training.workdir.facts import read_class_names

Call = Callable[[list[str]], subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[1]
NEW = "--workdir=runs/none"  # a folder that nothing is written to
EXAMPLES = {"train": 24, "test": 9}
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of drawn shapes, a folder a class."""
    root = tmp_path_factory.mktemp("pictures")
    draw_shapes(root, EXAMPLES, width=40)
    return root


def command(script: str, pictures: Path, workdir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, script),
        *("--config", "configs/fashion_mnist_vgg.py", "--workdir", str(workdir)),
        "--config.data.dataset=folder",
        "--config.optimizer.schedule=plateau",
        "--config.optimizer.warmup_epochs=0",
        f"--config.data.data_dir={pictures}",
        "--config.data.validation_fraction=0.25",
        "--config.model.name=vgg11_bn",
        "--config.model.num_classes=3",
        "--config.model.width=0.05",
        "--config.evaluation.batch_size=16",
        "--config.batch_size=8",
        "--config.num_epochs=2",  # 15 steps
        "--config.optimizer.learning_rate=0.05",
        "--config.validate_every_epochs=1",
        "--config.checkpoint_every_steps=5",
        "--config.log_every_steps=1",
        *more,
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The script as a process of its own, on two devices."""
    return subprocess.run(
        arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The same in this process, on its eight devices, where that is quicker."""

    def run_here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(arguments[1], run_name="__main__")
        code = exit.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run_here


def history(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for clocked in ("images_per_second", "waiting_for_images"):
            row.pop(clocked, None)
    return rows


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(command("train.py", pictures, workdir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images/s" in done.stdout and "left" in done.stdout
    return workdir


def stop(arguments: list[str], step: int, number: signal.Signals) -> tuple[int, str]:
    """Starts the script, and at this step sends a signal to all of its processes.

    kill -9 goes to the main process alone, as from one who is out of memory. Returns
    the exit code and what was printed after that.
    """
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            assert len(living(process.pid)) > 1  # there is a worker
            if number == signal.SIGKILL:
                process.kill()
            else:
                os.killpg(process.pid, number)
            break
    rest = process.stdout.read()
    code = process.wait()
    for _ in range(200):
        if not living(process.pid):
            return code, rest
        time.sleep(0.1)
    raise AssertionError(f"{living(process.pid)} outlive the main process")


def living(group: int) -> list[str]:
    """The processes of a group; one that has ended may still be listed as a zombie."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats.append(path.read_text())
    fields = [(stat, stat.rpartition(")")[2].split()) for stat in stats]
    return [
        stat
        for stat, (state, _, its_group, *_) in fields
        if state != "Z" and int(its_group) == group
    ]


def test_a_stopped_and_killed_run_goes_on_as_if_nothing_had_happened(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = command("train.py", pictures, tmp_path, "--config.data.num_workers=1")
    for step, number in [(3, signal.SIGINT), (7, signal.SIGTERM)]:
        code, rest = stop(arguments, step, number)
        assert code == 128 + number, rest
        assert "the same command goes on from there" in rest
    code, _ = stop(arguments, 11, signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = run(arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the start" not in done.stdout
    assert history(tmp_path) == history(whole)


def test_an_evaluation_ends_at_once_and_keeps_what_it_finished(
    pictures: Path, whole: Path
) -> None:
    arguments = command("eval.py", pictures, whole, "--protocol=center")
    process = subprocess.Popen(
        [*arguments, "--protocol=dense", "--scales=32", "--config.data.num_workers=1"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    kept = whole / "predictions"
    while not list(kept.glob("center*.npz")) and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait() == 128 + signal.SIGTERM, errors
    assert "\nstopped\n" in errors and "Traceback" not in errors
    assert time.monotonic() - began < GRACE_SECONDS + 5
    assert [path.name for path in kept.iterdir()] == ["center_q32_score_map.npz"]


def test_a_run_leaves_its_files(whole: Path) -> None:
    for name in ("config.json", "curves.png", "metrics.jsonl", "checkpoints"):
        assert (whole / name).exists(), name
    assert read_class_names(whole) == ("bar", "box", "disc")
    assert list((whole / "tensorboard").glob("events.*"))
    rows = history(whole)
    validations = [row for row in rows if "validation_loss" in row]
    assert len(validations) > 1 and rows[-1] == validations[-1]
    assert {"train_loss", "train_top1_error", "learning_rate"} <= rows[0].keys()


def test_a_finished_run_has_nothing_to_do(
    pictures: Path, whole: Path, call: Call
) -> None:
    before = history(whole)
    done = call(command("train.py", pictures, whole))
    assert done.returncode == 0 and "finished" in done.stdout
    assert history(whole) == before


def test_evaluation_prints_a_table_and_writes_it(
    pictures: Path, whole: Path, call: Call
) -> None:
    done = call(command("eval.py", pictures, whole, "--scales=32,36"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "center" in done.stdout and "dense" in done.stdout
    assert (whole / "predictions.png").stat().st_size > 10_000
    text = (whole / "eval.json").read_text()
    rows = json.loads(text)["results"]
    assert [(row["protocol"], row["scales"]) for row in rows] == [
        ("center", [32]),
        ("dense", [32]),
        ("dense", [36]),
        ("dense", [32, 36]),
    ]
    for row in rows:
        assert row["images"] == 3 * EXAMPLES["test"]
        assert 0 <= row["top1_error"] <= 1


def test_prediction_names_classes_and_draws_maps(
    pictures: Path, whole: Path, tmp_path: Path, call: Call
) -> None:
    picture = pictures / "test" / "disc" / "0.png"
    script = [sys.executable, "predict.py", "--output", str(tmp_path)]
    done = call([*script, "--workdir", str(whole), str(picture)])
    assert done.returncode == 0, done.stderr
    assert {line.split()[-1] for line in done.stdout.splitlines()[1:4]} == {
        *("bar", "box", "disc")
    }
    assert cv2.imread(str(tmp_path / "0.png.heat.png")) is not None
    done = call([*script, "--workdir", str(whole), "none.png"])
    assert done.returncode == 1 and "none.png" in done.stderr
    done = call([*script, "--workdir", str(pictures), str(picture)])
    assert done.returncode == 1 and "no run in" in done.stderr
    done = call([*script, "--workdir", str(whole), "--top=0", str(picture)])
    assert done.returncode == 2 and "--top: expected a whole number" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "more", "code", "expected"),
    [
        ("train.py", ["--config.batch_sise=3"], 2, "mean '--config.batch_size'"),
        ("train.py", [NEW, "--config.model.name=vgg_16"], 2, "did you mean 'vgg16'"),
        ("train.py", ["--config.batch_size=abc"], 2, "--config.batch_size: expected"),
        ("train.py", ["--config.data.data_dir=/nowhere"], 1, "/nowhere"),
        (
            "train.py",
            [NEW, "--config.model.num_classes=4"],
            1,
            "expected model.num_classes=3",
        ),
        ("train.py", ["--config.seed=1"], 1, "seed: 0 there, 1 now"),
        ("train.py", [NEW, "--config.batch_size=7"], 1, "multiple of 8"),
        ("train.py", ["--config.optimizer.metric=top1"], 2, "optimizer.metric 'top1'"),
        ("eval.py", ["--protocol=centre"], 2, "did you mean 'center'"),
        ("eval.py", ["--workdir=/nowhere"], 1, "python train.py --config"),
        ("eval.py", ["--scales=a"], 2, "--scales: expected short sides in pixels"),
        (
            "eval.py",
            ["--config", "configs/vgg61.py"],
            2,
            "or 'configs/vgg16.py'",
        ),
    ],
)
def test_bad_input_is_answered_in_a_line(
    script: str,
    more: list[str],
    code: int,
    expected: str,
    pictures: Path,
    whole: Path,
    call: Call,
) -> None:
    done = call(command(script, pictures, whole, *more))
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "runs" / "none").exists()


def test_divergence_names_the_last_good_checkpoint(
    pictures: Path, tmp_path: Path, call: Call
) -> None:
    arguments = command(
        "train.py",
        pictures,
        tmp_path,
        "--config.model.name=vgg11",
        "--config.optimizer.learning_rate=4e9",
    )
    done = call(arguments)
    assert done.returncode == 1
    assert "not a finite number" in done.stderr and "last good" in done.stderr

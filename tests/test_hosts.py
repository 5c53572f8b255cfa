"""The scripts on several hosts, here processes that meet on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from etils import epath

from tests.bucket import Bucket
from vgg_jax import distributed

ROOT = Path(__file__).parents[1]
DEVICES = 4
# A lost host ends the others within this time: twice the heartbeat's.
SECONDS = 2 * distributed.HEARTBEAT_SECONDS

Processes = list["subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise around a gray of their own, a folder a class."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in {"train": 24, "test": 5}.items():
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 120, (32, 36), np.uint8)
                cv2.imwrite(str(folder / f"{i}.png"), noise + 60 * label)
    return root


def command(
    script: str, pictures: Path, workdir: Path | epath.Path, *more: str
) -> list[str]:
    return [
        *(sys.executable, script, "--config", "configs/fashion_mnist_vgg.py"),
        f"--workdir={workdir}",
        "--config.data.dataset=folder",
        f"--config.data.data_dir={pictures}",
        "--config.data.validation_fraction=0.25",
        "--config.model.name=vgg11",
        "--config.model.head=paper",
        "--config.model.fc_kernel=1",
        "--config.model.fc_features=1280",
        "--config.model.num_classes=3",
        "--config.model.width=0.05",
        "--config.evaluation.batch_size=8",
        "--config.batch_size=8",
        "--config.num_epochs=2",
        # Hosts add up in another order, and large steps make more of that rounding.
        "--config.optimizer.learning_rate=0.002",
        "--config.checkpoint_every_steps=4",
        "--config.log_every_steps=1",
        *more,
    ]


def start(count: int, arguments: list[str]) -> Processes:
    """The script as so many hosts, with `DEVICES` devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
    }
    processes = []
    for index in range(count):
        address = (f"127.0.0.1:{port}", str(count), str(index))
        several = dict(zip(distributed.COORDINATOR, address, strict=True))
        processes.append(
            subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=common | (several if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: Processes, code: int = 0) -> list[str]:
    """What each printed, once all have ended with this code."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == code, output[-3000:]
    return outputs


def wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(words):
            return
    raise AssertionError("".join(seen))


def history(workdir: Path | epath.Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{n: v for n, v in row.items() if n != "images_per_second"} for row in rows]


def assert_same(found: Path, expected: Path) -> None:
    """To five digits: loss, gradient's norm and errors, of every line."""
    ours, theirs = history(found), history(expected)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            list(one.values()), list(two.values()), rtol=1e-5, err_msg=str((one, two))
        )


def test_one_machine_alone_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_is_tpu_vm", lambda: False)
    monkeypatch.setattr(
        distributed.jax.distributed, "initialize", None
    )  # not to be called
    # `salloc` and the script of `sbatch` know of tasks that they are not.
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    distributed.join()
    assert distributed.is_first() and not distributed.several()


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "a[1-2]"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_tasks_of_a_launcher_are_several(variables: dict[str, str]) -> None:
    assert distributed._launched_as_several(variables)
    alone = {n: "1" if v == "2" else v for n, v in variables.items()}
    assert not distributed._launched_as_several(alone)


def test_half_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    with pytest.raises(ValueError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        distributed.join()


def test_two_hosts_train_as_one(pictures: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(1, command("train.py", pictures, one))
    both = start(2, command("train.py", pictures, two, "--config.shard_fc=true"))
    finish(alone)
    first, second = finish(both)
    assert "host 0 of 2" in first and "finished at step" in first
    assert "host 1 of 2" in second and "finished" not in second
    assert_same(two, one)


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_in_a_bucket(
    pictures: Path, tmp_path: Path, bucket: Bucket
) -> None:
    one, two = tmp_path / "one", epath.Path("gs://runs/two")
    finish(start(1, command("train.py", pictures, one)))
    # In two parts: the second goes on from what the first saved.
    finish(start(2, command("train.py", pictures, two, "--config.num_epochs=1")))
    assert "step " in finish(start(2, command("train.py", pictures, two)))[0]
    rows = {row["step"]: row for row in history(two) if "train_loss" in row}
    for row in history(one):
        if "train_loss" in row:
            np.testing.assert_allclose(
                rows[row["step"]]["train_loss"], row["train_loss"], rtol=1e-5
            )
    for workdir in (one, two):
        center = ("--protocol", "center")
        finish(start(2, command("eval.py", pictures, workdir, *center)))
    results = [json.loads((run / "eval.json").read_text()) for run in (one, two)]
    errors = [run["results"][0]["top1_error"] for run in results]
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_four_hosts_train_and_evaluate_as_one(pictures: Path, tmp_path: Path) -> None:
    runs = {count: tmp_path / str(count) for count in (1, 4)}
    for count, workdir in runs.items():
        finish(start(count, command("train.py", pictures, workdir)))
    assert_same(runs[4], runs[1])
    # Both evaluate the one run, from its start.
    arguments = command("eval.py", pictures, runs[1], "--scales=32,36")
    tables = []
    for count in (1, 4):
        shutil.rmtree(runs[1] / "predictions", ignore_errors=True)
        (runs[1] / "eval.json").unlink(missing_ok=True)
        finish(start(count, arguments))
        tables.append(json.loads((runs[1] / "eval.json").read_text())["results"])
    assert len(tables[0]) == len(tables[1]) > 1
    for one, four in zip(*tables, strict=True):
        assert four["images"] == one["images"] == 15
        for error in ("top1_error", "top5_error"):
            np.testing.assert_allclose(four[error], one[error])


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_all_and_the_run_goes_on(
    lost: int, pictures: Path, tmp_path: Path
) -> None:
    arguments = command("train.py", pictures, tmp_path / "run", "--config.num_epochs=9")
    processes = start(2, arguments)
    wait_for(processes[0], "step 6/")
    processes[lost].kill()
    began = time.monotonic()
    output = processes[1 - lost].communicate(timeout=SECONDS)[0]
    assert processes[1 - lost].returncode not in (0, None)
    print(f"ended after {time.monotonic() - began:.0f} s:\n{output[-2000:]}")
    assert "lost another host" in output or "another task died" in output, output
    outputs = finish(start(2, arguments))
    assert "from the start" not in outputs[0] and "finished at step" in outputs[0]
    whole = command("train.py", pictures, tmp_path / "whole", "--config.num_epochs=9")
    finish(start(1, whole))
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_on_one_host_stops_all_after_one_step(
    told: int, pictures: Path, tmp_path: Path
) -> None:
    arguments = command("train.py", pictures, tmp_path, "--config.num_epochs=30")
    processes = start(2, arguments)
    wait_for(processes[0], "step 6/")
    processes[told].send_signal(signal.SIGTERM)
    outputs = finish(processes, 128 + signal.SIGTERM)
    assert "the same command goes on from there" in outputs[0]
    last = history(tmp_path)[-1]["step"]
    assert f"stopped at step {last}, saved" in outputs[0]
    processes = start(2, arguments)
    wait_for(processes[0], f"step {last + 1}/")
    processes[told].send_signal(signal.SIGTERM)
    finish(processes, 128 + signal.SIGTERM)

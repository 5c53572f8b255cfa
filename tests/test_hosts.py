"""The scripts on several hosts, here processes that meet on loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from etils import epath

import train
from tests.bucket import Bucket
from vgg_jax import cli, distributed
from vgg_jax.files import parse_path
from vgg_jax.training.workdir.checkpoint import saved_steps

ROOT = Path(__file__).parents[1]
DEVICES = 4
SECONDS = 60  # within which a lost host ends the others

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
        "--config.optimizer.schedule=plateau",
        "--config.optimizer.warmup_epochs=0",
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
        "--config.num_epochs=1",
        # Hosts add up in another order, and large steps make more of that rounding.
        "--config.optimizer.learning_rate=0.002",
        "--config.checkpoint_every_steps=4",
        "--config.log_every_steps=1",
        *more,
    ]


def start(
    count: int,
    arguments: list[str],
    own: tuple[list[str], ...] = (),
    index: str = distributed.COORDINATOR[2],
) -> Processes:
    """The script as so many hosts, with `DEVICES` devices in all.

    `own` are further arguments of each host, `index` the variable with its number.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
    }
    if count > 1:
        # Host 0 alone finds its programs there, and gloo gives the others 30 seconds.
        common["JAX_COMPILATION_CACHE_DIR"] = ""
    processes = []
    for host in range(count):
        address = (f"127.0.0.1:{port}", str(count), str(host))
        names = (*distributed.COORDINATOR[:2], index)
        several = dict(zip(names, address, strict=True))
        processes.append(
            subprocess.Popen(
                [*arguments, *(own[host] if own else ())],
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
    clocked = ("images_per_second", "waiting_for_images")
    return [{n: v for n, v in row.items() if n not in clocked} for row in rows]


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


def test_half_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    with pytest.raises(ValueError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        distributed.join()


def test_hosts_that_have_met_do_not_meet_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a worker of Ray, whose JaxTrainer calls `initialize` before the training.
    monkeypatch.setattr(distributed.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        distributed.jax.distributed, "initialize", None
    )  # not to be called
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    distributed.join()


def test_a_tpu_that_met_nobody_is_no_pod_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in distributed.COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_is_tpu_vm", lambda: True)
    monkeypatch.setattr(
        distributed.jax.distributed, "initialize", lambda **timeouts: None
    )
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    distributed.join()
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(ValueError, match=r"as number 1 .* met no other"):
        distributed.join()


def test_two_pods_meet_by_what_the_job_tells_them() -> None:
    code = (
        "from vgg_jax import distributed\n"
        "distributed._is_loopback = lambda _: False  # these pods share it\n"
        "distributed.join()"
    )
    processes = start(2, [sys.executable, "-c", code], index="JOB_COMPLETION_INDEX")
    first, second = finish(processes)
    assert "host 0 of 2" in first and "host 1 of 2" in second


def test_pods_that_cannot_meet_are_refused(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in distributed.COORDINATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.chdir(ROOT)
    _, _, *flags = command("train.py", pictures, tmp_path / "run")
    assert train.main(flags) == cli.FAILED
    told = capsys.readouterr().err
    assert told.startswith("error: Kubernetes started this process as one of several")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_program_that_joins_ends_as_any_other(tmp_path: Path) -> None:
    """Threads that wait in C++ when Python ends make it abort."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from vgg_jax import distributed\n"
        "distributed.join()\n"
        "if distributed.is_first():\n"
        "    time.sleep(4)\n"
    )
    outputs = finish(start(2, [sys.executable, str(program)]))
    assert [output.split() for output in outputs] == [
        ["host", str(host), "of", "2"] for host in range(2)
    ]


def test_two_hosts_train_as_one(pictures: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(1, command("train.py", pictures, one))
    more = ("--config.shard_fc=true", "--config.data.on_device=true")
    both = start(2, command("train.py", pictures, two, *more))
    finish(alone)
    first, second = finish(both)
    assert "host 0 of 2" in first and "finished at step" in first
    assert "host 1 of 2" in second and "finished" not in second
    assert_same(two, one)


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_in_a_bucket(
    pictures: Path, tmp_path: Path, bucket: Bucket
) -> None:
    one, two = tmp_path / "one", parse_path("gs://runs/two")
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


def test_hosts_that_do_not_agree_stop_before_the_first_step(
    pictures: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    own = (
        ["--config.seed=1"],
        ["--config.seed=2", "--config.data.num_threads=1"],  # this one may differ
    )
    both = start(2, command("train.py", pictures, workdir), own)
    for host, output in enumerate(finish(both, cli.FAILED)):
        assert f"host {host}: error: the hosts do not agree:\n" in output
        assert "\n  seed: 1 on host 0; 2 on host 1\n" in output
        assert "num_threads" not in output and "Traceback" not in output
    assert not workdir.exists()


def test_hosts_with_folders_of_their_own_stop_before_the_first_step(
    pictures: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, train\n"
        "from vgg_jax.training.workdir import lock\n"
        "lock.SECONDS_UNTIL_SEEN = 3\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    workdirs = [tmp_path / machine / "run" for machine in "ab"]
    _, _, *flags = command("train.py", pictures, workdirs[0])
    own = tuple([f"--workdir={workdir}"] for workdir in workdirs)
    both = start(2, [sys.executable, "-c", code, *flags], own)
    for host, output in enumerate(finish(both, cli.FAILED)):
        assert f"host {host}: error: expected one folder {workdirs[host]}" in output
        assert "host 0 wrote there did not come to host 1 within 3 s" in output
        assert "Traceback" not in output
    assert not any(workdirs[0].iterdir()) and not workdirs[1].exists()


def test_facts_of_hosts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    long = list(range(100))
    others = [{"classes": str(long)}, {"classes": str(long[1:]), "more": "1"}]
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(
        distributed, "gather", lambda facts: [facts, *(facts | o for o in others)]
    )
    with pytest.raises(ValueError, match="do not agree") as error:
        distributed.agree({"classes": long, "seed": 0})
    _, classes, more, _ = str(error.value).splitlines()
    assert classes.startswith("  classes: [0, 1, 2") and len(classes) < 160
    assert "on host 0, 1; [1, 2, 3" in classes and classes.endswith("on host 2")
    assert more == "  more: nothing on host 0, 1; 1 on host 2"
    others[1:] = []
    distributed.agree({"classes": long, "seed": 0})
    others[0]["source of vgg_jax"] = "of yesterday"
    with pytest.raises(ValueError, match=r"of vgg_jax: .* on host 0; of yesterday on"):
        distributed.agree({"classes": long, "seed": 0})


def test_an_error_of_another_host_is_told_from_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = jax.errors.JaxRuntimeError("UNAVAILABLE: Connection closed\nby peer")
    own = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = peer
    barrier = RuntimeError("cannot save")
    barrier.__cause__ = TimeoutError("Timeout waiting at barrier '[op=4] commit'.\nRPC")
    assert distributed.reason_of_loss(peer) is None  # there is no other host
    monkeypatch.setattr(distributed, "several", lambda: True)
    for error in (peer, wrapped):
        line = distributed.reason_of_loss(error)
        assert line is not None and line.startswith("lost another host (UNAVAILABLE: ")
        assert "\n" not in line
    line = distributed.reason_of_loss(barrier)
    assert line is not None and line.startswith("lost another host (Timeout waiting at")
    assert "\n" not in line
    assert distributed.reason_of_loss(TimeoutError("a slow disk")) is None
    assert distributed.reason_of_loss(own) is None
    assert distributed.reason_of_loss(ValueError("too large")) is None
    assert distributed.reason_of_loss(distributed.LostHost("alone")) == "alone"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.1.1", "[::1]"])
def test_a_coordinator_that_no_other_machine_reaches_is_refused(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_pod = {
        "JOB_COMPLETION_INDEX": "1",
        distributed.COORDINATOR[0]: f"{host}:80",
        distributed.COORDINATOR[1]: "2",
    }
    for name, value in of_pod.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="an address of host 0 that other machines"):
        distributed.join()
    distributed._refuse_loopback("10.0.0.1:80")
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    distributed._refuse_loopback(f"{host}:80")


def test_a_host_that_nobody_joins_gives_up(pictures: Path, tmp_path: Path) -> None:
    arguments = command("train.py", pictures, tmp_path / "run")
    variables = ("127.0.0.1:9", "2", "1")  # a port at which nobody listens
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", distributed.MEETING: "1"}
        | dict(zip(distributed.COORDINATOR, variables, strict=True)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == cli.RETRY
    [line] = done.stderr.splitlines()
    assert line.startswith("host 1: error: waited 1 s for the other hosts")
    assert distributed.MEETING in line


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "soon"])
def test_a_time_to_meet_is_whole_seconds(text: str) -> None:
    with pytest.raises(ValueError, match="at least 1 second"):
        distributed._meeting_seconds({distributed.MEETING: text})
    assert distributed._meeting_seconds({}) == 30 * 60
    assert distributed._meeting_seconds({distributed.MEETING: "90"}) == 90


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_signal_on_one_host_stops_all_at_one_point(
    number: signal.Signals, told: int
) -> None:
    processes = start(2, [sys.executable, "-m", "tests.work_on_hosts"])
    wait_for(processes[0], "step 3")
    processes[told].send_signal(number)
    ends = [
        re.findall("stopped at step .*", output)
        for output in finish(processes, 128 + number)
    ]
    assert ends[0] == ends[1] and len(ends[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_stands_still_ends_the_others(lost: int) -> None:
    processes = start(2, [sys.executable, "-m", "tests.work_on_hosts"])
    wait_for(processes[0], "step 3")
    processes[lost].send_signal(signal.SIGSTOP)
    output = processes[1 - lost].communicate(timeout=SECONDS)[0]
    processes[lost].kill()
    processes[lost].communicate()
    assert processes[1 - lost].returncode == cli.RETRY
    said = (line for line in output.splitlines() if not line.startswith("step "))
    [line] = [line for line in said if line != f"host {1 - lost} of 2"]
    assert line.startswith(f"host {1 - lost}: error: lost another host (host {lost} ")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_all_and_the_run_goes_on(
    lost: int, pictures: Path, tmp_path: Path
) -> None:
    arguments = command("train.py", pictures, tmp_path / "run", "--config.num_epochs=9")
    processes = start(2, arguments)
    wait_for(processes[0], "step 6/")
    for _ in range(300):  # on a busy machine the save of step 4 takes its time
        if saved_steps(parse_path(tmp_path / "run")):
            break
        time.sleep(0.1)
    processes[lost].kill()
    output = processes[1 - lost].communicate(timeout=SECONDS)[0]
    assert processes[1 - lost].returncode == cli.RETRY, output
    assert output.count("lost another host") == 1, output
    assert "goes on from the last checkpoint" in output
    outputs = finish(start(2, arguments))
    assert "from the start" not in outputs[0] and "finished at step" in outputs[0]
    whole = command("train.py", pictures, tmp_path / "whole", "--config.num_epochs=9")
    finish(start(1, whole))
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_on_one_host_stops_all_after_one_step(
    number: signal.Signals, told: int, pictures: Path, tmp_path: Path
) -> None:
    more = ("--config.num_epochs=30", "--config.data.num_workers=1")
    arguments = command("train.py", pictures, tmp_path, *more)
    last = 0
    for step in (6, None):
        processes = start(2, arguments)
        wait_for(processes[0], f"step {step or last + 1}/")
        processes[told].send_signal(number)
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert codes == [128 + number] * 2, outputs
        last = history(tmp_path)[-1]["step"]
        assert f"stopped at step {last}, saved" in outputs[0]
        assert "the same command goes on from there" in outputs[0]


@pytest.mark.slow
def test_hosts_run_a_pass_that_one_of_them_has_not_kept(
    pictures: Path, tmp_path: Path
) -> None:
    """They evaluate the same run, each in a folder of its own."""
    runs = [tmp_path / host / "run" for host in ("0", "1")]
    finish(start(1, command("train.py", pictures, runs[0])))
    arguments = command("eval.py", pictures, runs[0], "--protocol=center")
    finish(start(1, arguments))
    table = (runs[0] / "eval.json").read_text()
    shutil.copytree(runs[0], runs[1])
    shutil.rmtree(runs[1] / "predictions")
    own = tuple([f"--workdir={run}"] for run in runs)
    arguments.remove(f"--workdir={runs[0]}")
    finish(start(2, arguments, own))
    assert (runs[0] / "eval.json").read_text() == table

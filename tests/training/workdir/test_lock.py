"""One training at a time writes into a workdir."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vgg_jax.training.workdir import lock
from vgg_jax.training.workdir.lock import (
    WorkdirHeld,
    WorkdirLock,
    WorkdirLost,
    refuse_held,
)

HOLD = """
import sys
from pathlib import Path
from vgg_jax.training.workdir.lock import WorkdirLock
with WorkdirLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_it_has_ended(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for take in (WorkdirLock(tmp_path).__enter__, lambda: refuse_held(tmp_path)):
            with pytest.raises(WorkdirHeld) as error:
                take()
            assert f"process {holder.pid} on host " in str(error.value)
            assert str(tmp_path) in str(error.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    refuse_held(tmp_path)
    with WorkdirLock(tmp_path) as held:  # the lock of a dead process is taken over
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        held.confirm()
    assert not (tmp_path / "lock").exists()
    refuse_held(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_is_gone_is_noticed(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    with WorkdirLock(workdir) as held:
        held.confirm()
        workdir.rename(tmp_path / "away")
        with pytest.raises(WorkdirLost, match=f"{workdir} is gone"):
            held.confirm()
        workdir.mkdir()
        with WorkdirLock(workdir) as other:
            other.confirm()
            with pytest.raises(WorkdirLost, match="has lost its file 'lock'"):
                held.confirm()
            held.__exit__()
            other.confirm()  # the file of another is not removed


def test_an_owner_that_removes_its_file_meanwhile_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def remove_and_lock(file: object, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with WorkdirLock(tmp_path) as held:
        held.confirm()
        with pytest.raises(WorkdirHeld):
            WorkdirLock(tmp_path).__enter__()


def test_other_hosts_of_a_run_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkdirLock(tmp_path):
        monkeypatch.setattr(lock, "is_first", lambda: False)
        refuse_held(tmp_path)
        with WorkdirLock(tmp_path) as held:
            held.confirm()
        assert (tmp_path / "lock").exists()


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with WorkdirLock(tmp_path) as held:
        held.confirm()
    assert "No locks available" in capsys.readouterr().err

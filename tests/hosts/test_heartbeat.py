"""A lost host ends the others with one line and a code of its own."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import jax
import pytest

from vgg_jax.hosts import heartbeat
from vgg_jax.hosts.heartbeat import GONE, KEY, RETRY, Heartbeat


class Store:
    """The coordinator's, of two hosts: what the other writes is up to a test."""

    def __init__(self, other: Callable[[int], str]):
        self.values: dict[str, str] = {}
        self.reads = 0
        self.other = other

    def key_value_set(self, key: str, value: str, *, allow_overwrite: bool) -> None:
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        assert prefix == KEY
        self.reads += 1
        self.values[f"{KEY}/1"] = self.other(self.reads)
        return list(self.values.items())


def stopped(beat: int) -> NoReturn:
    raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda beat: "7", "host 1 is silent for 0.5 s"),
        (lambda beat: str(beat) if beat < 3 else GONE, "host 1 ended"),
        (stopped, "host 0 does not answer for 0.5 s"),
        (str, None),
    ],
    ids=["silent", "ends", "no answer", "lives"],
)
def test_a_lost_host_is_noticed(
    other: Callable[[int], str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(heartbeat, "end", lambda *line: lines.append(line))
    monkeypatch.setattr(heartbeat, "SECONDS", 0.5)
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.05)
    watch = Heartbeat(Store(other), 0, 2, "127.0.0.1:9")
    monkeypatch.setattr(watch, "end_at_abort", lambda: None)
    watch.start()
    for _ in range(20):
        if not lines:
            time.sleep(0.1)
    watch.stop()
    if reason is None:
        assert not lines
        return
    host, message = lines[0]
    assert host == 0 and reason in message and "\n" not in message


def test_an_abort_is_a_loss_where_a_host_is_gone() -> None:
    """JAX aborts when it loses a host; other aborts stay what they are."""
    code = (
        "import os, socket; from vgg_jax.hosts.heartbeat import INTERVAL, Heartbeat\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "here = f'127.0.0.1:{listening.getsockname()[1]}'\n"
        "long = 4 * INTERVAL\n"
        "for address, silent in (here, 0), ('127.0.0.1:9', 0), (here, long):\n"
        "    if not (child := os.fork()):\n"
        "        watch = Heartbeat(None, 3, 4, address)\n"
        "        value, when = watch._last['1']\n"
        "        watch._last['1'] = (value, when - silent)\n"
        "        watch.end_at_abort()\n"
        "        os.abort()\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.split() == ["-6", str(RETRY), str(RETRY)], done.stderr
    coordinator, silent = done.stderr.splitlines()
    assert coordinator.startswith("host 3: error: lost another host (host 0 is gone)")
    assert silent.startswith("host 3: error: lost another host (host 1 is silent for 9")

"""Signals as requests, and at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vgg_jax.interrupt import SIGNALS, Interrupt


@pytest.mark.parametrize("wanted", SIGNALS)
def test_the_first_signal_is_a_request_the_second_ctrl_c_stops(
    wanted: signal.Signals,
) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with Interrupt() as interrupt:
        interrupt.postpone()
        assert interrupt.requested() is None
        os.kill(os.getpid(), wanted)
        assert interrupt.requested() is wanted
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does, which sends two
        assert interrupt.requested() is wanted
        with pytest.raises(KeyboardInterrupt) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.args == (signal.SIGINT,)
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("wanted", SIGNALS)
def test_a_signal_stops_at_once_while_there_is_nothing_to_save(
    wanted: signal.Signals,
) -> None:
    with Interrupt():
        with Interrupt() as inner, pytest.raises(KeyboardInterrupt) as stopped:
            os.kill(os.getpid(), wanted)
        assert inner.signal is None
        os.kill(os.getpid(), wanted)  # once is enough: the first is being acted on
    assert stopped.value.args == (wanted,)


def test_what_a_callback_loses_is_raised_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Late:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def work() -> None:
        late = Late()
        del late  # what `__del__` raises goes no further
        time.sleep(20)

    with Interrupt(), pytest.raises(KeyboardInterrupt) as stopped:
        work()
    assert stopped.value.args == (signal.SIGTERM,)
    assert capsys.readouterr().err == ""


def test_outside_of_the_main_thread_nothing_is_taken() -> None:
    """Ray's trainer calls `train` in such a thread."""
    before, seen = [signal.getsignal(s) for s in SIGNALS], []

    def work() -> None:
        with Interrupt() as interrupt:
            interrupt.postpone()
            seen.append(interrupt.requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_a_main_thread_that_does_not_end_is_ended() -> None:
    code = (
        "import threading, time; from vgg_jax import interrupt\n"
        "interrupt.GRACE_SECONDS = 0.2\n"
        "with interrupt.Interrupt(ends_process=True):\n"
        "    try:\n"
        "        print('busy', flush=True)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(60)\n"  # it tidies up, and does not come to an end
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "stopped\n"


def test_a_request_is_kept_though_nobody_reads_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(*_: object) -> int:
        raise BrokenPipeError

    with Interrupt() as interrupt:
        interrupt.postpone()
        monkeypatch.setattr(os, "write", write)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested() is signal.SIGTERM


def test_it_is_ended_though_nobody_reads_what_it_says() -> None:
    """As where the terminal or the reader of a pipe is gone."""
    code = (
        "import time; from vgg_jax import interrupt\n"
        "interrupt.GRACE_SECONDS = 0.2\n"
        "with interrupt.Interrupt(ends_process=True):\n"
        "    words = ['busy']\n"
        "    while True:\n"
        "        try:\n"
        "            while words:\n"
        "                print(words.pop(), flush=True)\n"
        "            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        process.kill()

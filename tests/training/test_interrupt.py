"""Signals as wishes."""

import os
import signal

import pytest

from vgg_jax.training.interrupt import SIGNALS, Interrupt


@pytest.mark.parametrize("wanted", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_the_second_stops(wanted: signal.Signals) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.after(1) is None
        os.kill(os.getpid(), wanted)
        assert interrupt.after(2) is wanted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), wanted)
    assert [signal.getsignal(s) for s in SIGNALS] == before

"""This module takes Ctrl-C and SIGTERM as requests to stop after the step."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from vgg_jax import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Catches signals inside `with`: the first one is kept, a second stops at once.

    On several hosts JAX takes SIGTERM, on whichever it comes, and has all of them stop
    after the same step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        ours = (signal.SIGINT,) if distributed.several() else SIGNALS
        self._before = {s: signal.signal(s, self._catch) for s in ours}
        return self

    def after(self, step: int) -> signal.Signals | None:
        """Returns the signal to stop for, or None; call it after every step."""
        if not distributed.several():
            return self.signal
        stops = multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM if stops else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if distributed.several():
            os.kill(os.getpid(), signal.SIGTERM)
        print("\nstopping after this step; once more stops at once", flush=True)

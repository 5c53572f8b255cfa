"""This module repairs what Orbax and TensorStore leave behind in a process."""

import asyncio
import copy
from collections.abc import Coroutine
from typing import Any, TypeVar

import tensorstore
from orbax.checkpoint._src import asyncio_utils

T = TypeVar("T")

_describe = tensorstore.KvStore.Spec.to_json
_descriptions: dict[str, Any] = {}  # of the last stores, by what `repr` says of them


def apply() -> None:
    """Makes the repairs, for the whole process.

    Two calls of TensorStore leave what they answer in memory for good, and Orbax makes
    them at every save: for its counters, 35 kB that only Orbax's log has a use for, and
    once an array, with the same answer for all, for the description of a store. And a
    load that fails leaves reads behind, which print tracebacks when they end.
    """
    tensorstore.experimental_collect_matching_metrics = lambda *_: []
    spec: Any = tensorstore.KvStore.Spec
    spec.to_json = _describe_once
    asyncio_utils._run_sync_via_new_loop = _run_to_its_end
    asyncio_utils._run_event_loop = _run_until_stopped


def _describe_once(spec: Any, include_defaults: bool = False) -> Any:
    """Returns what `KvStore.Spec.to_json` does, which it asks once for equal stores."""
    key = f"{spec!r} {include_defaults}"
    description = _descriptions.get(key)
    if description is None:
        if len(_descriptions) == 16:
            _descriptions.clear()
        description = _descriptions[key] = _describe(spec, include_defaults)
    return copy.deepcopy(description)


def _run_to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop of its own, and all that it begins."""
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        asyncio.set_event_loop(None)
        _close(loop)


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    """Runs an event loop in a thread until `stop`, and then what was begun in it."""
    try:
        loop.run_forever()
    finally:
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Closes an event loop when all that was begun in it has ended.

    Nothing is canceled: a read of TensorStore reports that to a loop which is closed.
    Where the work itself has not ended, a signal came, which waits for nothing.
    """
    try:
        while begun := asyncio.all_tasks(loop):
            if any(_is_work(task) for task in begun):
                break
            loop.run_until_complete(asyncio.gather(*begun, return_exceptions=True))
    finally:
        loop.close()


def _is_work(task: asyncio.Task[Any]) -> bool:
    """Returns whether a task is what `asyncio_utils.run_sync` was given."""
    return getattr(task.get_coro(), "__name__", "") == "_coro_with_registration"

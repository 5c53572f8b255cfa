"""All hosts stop at one point; here they are threads with a store."""

import threading
import time
from typing import Any

import jax
import pytest

from vgg_jax.hosts.stop_vote import StopVote


class Store:
    """The coordinator's, as JAX's client has it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout: int) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 20)
            return self.values[key]


@pytest.mark.parametrize("told", [{0: 15}, {2: 2}, {0: 2, 1: 15, 2: 2}])
def test_all_hosts_stop_at_one_point(told: dict[int, int]) -> None:
    """They are up to two points apart, as hosts that wait for each other's steps."""
    store: Any = Store()
    votes = [StopVote(store, host, 3) for host in range(3)]
    ends: dict[int, tuple[int, int]] = {}
    points = [0, 0, 0]

    def work(host: int) -> None:
        votes[host].start()
        for point in range(1, 2000):
            while point > min(points) + 2:  # the others have not dispatched this step
                time.sleep(0.0001)
            points[host] = point
            if point == 50 and host in told:
                votes[host].request(told[host])
            if (number := votes[host].pass_point()) is not None:
                ends[host] = point, number
                points[host] = 2000
                return
            time.sleep(0.001 * host)

    threads = [threading.Thread(target=work, args=(host,)) for host in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(ends) == 3 and len(set(ends.values())) == 1
    point, number = ends[0]
    assert 50 <= point < 2000 and number in told.values()

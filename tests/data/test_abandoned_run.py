"""What open defects of Grain would do to a run that breaks off, and here do not.

They are google/grain's issues 1129 and 953: each worker process drops the rest of its
batches; 1196: threads that read ahead keep a broken process from its end; 398: shared
memory is left behind.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("abandoned_run.py")
SHARED_MEMORY = Path("/dev/shm")
SIZE, EPOCHS = 30, 7


@dataclass
class Ended:
    """How the run ended, what it said, and the shared memory that it left."""

    code: int
    output: str
    errors: str
    left: set[str]


@pytest.fixture(scope="module")
def ended() -> Ended:
    before = set(os.listdir(SHARED_MEMORY))
    done = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        timeout=100,  # a tenth of it is usual; it would wait for ever
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])},
    )
    left = set(os.listdir(SHARED_MEMORY)) - before
    names = {name for name in left if name.startswith("psm_")}  # Python's
    for _ in range(200):  # tests beside this one have some, too, but not for long
        if not names:
            break
        time.sleep(0.1)
        names &= set(os.listdir(SHARED_MEMORY))
    return Ended(done.returncode, done.stdout, done.stderr, names)


def test_a_run_that_breaks_off_ends(ended: Ended) -> None:
    assert ended.code == 1
    assert "RuntimeError: broken off while" in ended.errors


def test_worker_processes_drop_no_example(ended: Ended) -> None:
    facts = json.loads(ended.output)
    numbers = facts["workers"]
    assert len(numbers) == EPOCHS * SIZE
    for epoch in range(EPOCHS):
        assert sorted(numbers[epoch * SIZE :][:SIZE]) == list(range(SIZE))
    assert numbers == facts["threads"]


def test_no_shared_memory_is_left_behind(ended: Ended) -> None:
    assert json.loads(ended.output)["shared memory"] == 0
    assert not ended.left

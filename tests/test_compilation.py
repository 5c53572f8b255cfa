"""How the scripts run JAX."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# 100 MiB are taken, touched and given back, ten times over, in a thread, as XLA does.
FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from vgg_jax.compilation import keep_memory

def touch():
    np.ones(100 * 2**20, np.uint8)

if sys.argv[1] == "keep":
    keep_memory()
with ThreadPoolExecutor(1) as thread:
    thread.submit(touch).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        thread.submit(touch).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool, **environment: str) -> int:
    command = [sys.executable, "-c", FAULTS, "keep" if keep else "leave"]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is set")
def test_memory_is_kept() -> None:
    assert page_faults(keep=True) < 100 < page_faults(keep=False)
    # 4 MiB is what the user lets glibc keep.
    assert page_faults(keep=True, MALLOC_TRIM_THRESHOLD_="4194304") > 100

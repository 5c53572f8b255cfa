"""How the scripts run JAX."""

import os
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


# Prints the size in kB of the part of the heap that asks for huge pages ("hg"), and
# the memory that the process has.
HEAP = """
import re, resource, sys
from vgg_jax.compilation import keep_memory

if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
keep_memory()
maps = re.split(r"^(?=[0-9a-f]+-)", open("/proc/self/smaps").read(), flags=re.M)
heap = [text for text in maps if "[heap]" in text and re.search("VmFlags.* hg", text)]
size = sum(int(re.search(r"Size: +(\\d+)", text)[1]) for text in heap)
status = open("/proc/self/status").read()
print(size, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


def heap_in_huge_pages(*arguments: str, **environment: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", HEAP, *arguments],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    size, memory = map(int, done.stdout.split())
    return size, memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is set")
@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="only 4 kB pages")
def test_the_heap_asks_for_huge_pages_and_takes_none() -> None:
    size, memory = heap_in_huge_pages()
    kilobytes = os.sysconf("SC_PHYS_PAGES") * 4
    assert kilobytes / 2 - 3 * 1024 < size <= kilobytes / 2
    assert memory < 500_000
    # A limit to addresses, or an allocator of the user's, leaves the heap as it is.
    assert heap_in_huge_pages(str(2**33))[0] == 0
    assert heap_in_huge_pages(LD_PRELOAD="libm.so.6")[0] == 0

"""How the scripts run JAX."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vgg_jax.compilation import _can_take_addresses

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")

# Two threads take 100 MiB each, touch them and give them back, eleven times, as XLA's
# do. The command has a thread of its own by then.
FAULTS = """
import resource, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np

both = threading.Barrier(2)

def touch(_):
    block = np.ones(100 * 2**20, np.uint8)
    both.wait()

def measure(_):
    counts = []
    with ThreadPoolExecutor(2) as threads:
        for _ in range(11):
            list(threads.map(touch, range(2)))
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    print(counts[-1] - counts[0])
    return 0

if sys.argv[1] == "command":
    from vgg_jax import cli
    sys.exit(cli.command(measure, cli.Parser("command", "Measures."), []))
if sys.argv[1] == "keep":
    from vgg_jax.compilation import keep_memory
    keep_memory()
measure(None)
"""


def output_of(program: str, *arguments: str, **environment: str) -> list[int]:
    """The numbers that a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    return [int(number) for number in done.stdout.split()]


def page_faults(how: str, **environment: str) -> int:
    return output_of(FAULTS, how, **environment)[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is set")
def test_memory_is_kept() -> None:
    assert page_faults("keep") < 100 < page_faults("leave")
    assert page_faults("command") < 100
    # 4 MiB is what the user lets glibc keep.
    assert page_faults("keep", MALLOC_TRIM_THRESHOLD_="4194304") > 100


# Prints the size in kB of the part of the heap that asks for huge pages ("hg"), and
# the memory that the process has. What protobuf does now and then comes before.
HEAP = """
import ctypes, re, resource, sys
from vgg_jax.compilation import keep_memory

for limit in sys.argv[1:]:
    resource.setrlimit(getattr(resource, limit), (2**33,) * 2)
keep_memory()
keep_memory()  # does nothing more
ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
maps = re.split(r"^(?=[0-9a-f]+-)", open("/proc/self/smaps").read(), flags=re.M)
heap = [text for text in maps if "[heap]" in text and re.search("VmFlags.* hg", text)]
size = sum(int(re.search(r"Size: +(\\d+)", text)[1]) for text in heap)
status = open("/proc/self/status").read()
print(size, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is set")
@pytest.mark.skipif(not _can_take_addresses(), reason="addresses are limited")
@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the system has no huge pages")
@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="only 4 kB pages")
def test_the_heap_asks_for_huge_pages_and_takes_none() -> None:
    size, memory = output_of(HEAP)
    kilobytes = os.sysconf("SC_PHYS_PAGES") * 4
    least = kilobytes / 2 - 3 * 1024
    assert least < size <= kilobytes / 2
    assert memory < 500_000
    # A limit to addresses, or an allocator of the user's, leaves the heap as it is.
    assert output_of(HEAP, "RLIMIT_AS")[0] == 0
    assert output_of(HEAP, "RLIMIT_DATA")[0] == 0
    assert output_of(HEAP, LD_PRELOAD="libm.so.6")[0] == 0
    assert output_of(HEAP, LD_PRELOAD="")[0] > least

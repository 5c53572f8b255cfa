"""Sets JAX up as the scripts run it: memory stays, compiled programs are kept."""

import ctypes
import functools
import os
import platform
import resource
import sys
import warnings
from pathlib import Path

import jax
import jaxlib

CACHE = "~/.cache/vgg_jax/compiled"

# The parameters of glibc's mallopt that are set.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE = 14  # of Linux


def prepare_jax() -> None:
    """Keeps memory and compiled programs; call it before JAX or a thread starts.

    See docs/performance.md.
    """
    keep_memory()
    cache_compilations()


@functools.cache  # once in a process
def keep_memory() -> None:
    """Lets the process keep the memory that it frees, on Linux with glibc.

    XLA allocates a program's memory anew every time that it runs. As glibc is, a large
    block comes from the system and goes back, and every page of it is cleared when it
    is next touched: on CPU a good part of a training step. What is kept lies in huge
    pages where the system has them. glibc's own environment variables take precedence.

    Call it before the process has threads that allocate: such a thread has memory of
    its own, which threads of XLA may come to share, and of which large blocks go back.
    """
    is_set = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if is_set or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # every block from the heap,
        mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks,
        mallopt(_M_ARENA_MAX, 1)  # in every thread: a thread's own holds 64 MB
        if _can_take_addresses():
            _grow_in_huge_pages(libc)


def _can_take_addresses() -> bool:
    """Returns whether the process can have addresses without memory for them.

    It can not where there is a limit to them, or where the system has memory for all
    that it lends. An allocator of the user's (LD_PRELOAD) has its own ways.
    """
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    unlimited = all(
        resource.getrlimit(limit)[0] == resource.RLIM_INFINITY for limit in limits
    )
    try:
        overcommits = Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2"
    except OSError:
        overcommits = False
    return unlimited and overcommits and not os.environ.get("LD_PRELOAD")


def _grow_in_huge_pages(libc: ctypes.CDLL) -> None:
    """Lets the heap have room for half of the machine's memory, in huge pages.

    The room is of addresses alone: a page takes memory when it is first touched. What
    the heap grows by afterwards has pages of the usual size.
    """
    page, huge = os.sysconf("SC_PAGE_SIZE"), 2**21
    if page != 4096:  # larger pages have far larger huge ones
        return
    libc.malloc.restype = ctypes.c_void_p
    size = page * os.sysconf("SC_PHYS_PAGES") // 2
    block = libc.malloc(ctypes.c_size_t(size))
    if block is None:  # the system lends no more than it has memory for
        return
    start = -(-block // huge) * huge
    length = ctypes.c_size_t(block + size - start)
    # A system without huge pages refuses, and nothing is different.
    libc.madvise(ctypes.c_void_p(start), length, _MADV_HUGEPAGE)
    # A block above keeps the room: protobuf cuts off what is free at the heap's end.
    libc.malloc(ctypes.c_size_t(huge))
    libc.free(ctypes.c_void_p(block))


def cache_compilations() -> None:
    """Keeps what JAX compiles in `CACHE`, unless the user chose another directory.

    JAX's own switch is the environment variable JAX_COMPILATION_CACHE_DIR; set to the
    empty string it keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def single_run_options(platform: str) -> dict[str, int]:
    """Returns options for the compiler of a program that runs once.

    On CPU, LLVM then leaves out what takes longer than it can save.

    Args:
        platform: "cpu", "gpu" or "tpu".
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else {}


def onednn_options(
    dtype: str = "float32",
    version: str = jaxlib.__version__,
    machine: str = platform.machine(),
) -> dict[str, bool | str]:
    """Returns the options by which XLA has oneDNN compute convolutions on CPU.

    They are for `jax.jit(step, compiler_options=onednn_options())` in a program for
    CPU, of training or not, which takes the convolutions, the gradients of their inputs
    and the larger matrix products from oneDNN, with results that differ in rounding.
    JAX cannot keep such a program between processes: each start compiles it again, and
    the warning that says so for every program is switched off here.

    jaxlib 0.12 computes SiLU (swish) and GELU wrongly with them where what comes before
    the activation is used again: it then gets what comes behind. The gradient of SiLU
    uses it, that of GELU does not; an output or a residual may. With such activations
    put `jax.lax.optimization_barrier` around what comes before:
    `jax.nn.silu(jax.lax.optimization_barrier(conv(x)))`.

    Args:
        dtype: the type that the network computes in; bfloat16 gets slower by it.
        version, machine: those of jaxlib and of the processor.

    Returns:
        The options; none where oneDNN is not in jaxlib, or no gain.
    """
    has_options = version.split(".")[:2] == ["0", "12"]  # others may refuse to start
    if dtype != "float32" or machine not in ("x86_64", "AMD64") or not has_options:
        return {}
    warnings.filterwarnings(
        "ignore", "Error writing persistent compilation cache entry .*bad_alloc"
    )
    return {
        "xla_cpu_experimental_onednn_custom_call": True,
        # XLA's other library would take most of them first; it keeps the reductions.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }

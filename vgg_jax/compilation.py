"""Sets JAX up as the scripts run it: memory stays, compiled programs are kept."""

import ctypes
import os
import sys
from pathlib import Path

import jax

CACHE = "~/.cache/vgg_jax/compiled"

# The parameters of glibc's mallopt that are set.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare_jax() -> None:
    """Keeps memory and compiled programs; must be called before JAX has started.

    See docs/performance.md.
    """
    keep_memory()
    cache_compilations()


def keep_memory() -> None:
    """Lets the process keep the memory that it frees, on Linux with glibc.

    XLA allocates a program's memory anew every time that it runs. As glibc is, a large
    block comes from the system and goes back, and every page of it is cleared when it
    is next touched: on CPU a good part of a training step. glibc's own environment
    variables take precedence.
    """
    is_set = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if is_set or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # every block from the heap,
        mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks,
        mallopt(_M_ARENA_MAX, 1)  # in every thread: a thread's own holds 64 MB


def cache_compilations() -> None:
    """Keeps what JAX compiles in `CACHE`, unless the user chose another directory.

    JAX's own switch is the environment variable JAX_COMPILATION_CACHE_DIR; set to the
    empty string it keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

"""Compiled programs kept on disk, so that a second start need not compile."""

from pathlib import Path

import jax

CACHE = "~/.cache/vgg_jax/compiled"


def cache_compilations() -> None:
    """Keep what JAX compiles in `CACHE`; a directory that the user chose stays.

    JAX's own switch is the environment variable JAX_COMPILATION_CACHE_DIR; set to the
    empty string it keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

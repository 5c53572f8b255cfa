"""Eight virtual CPU devices, set before JAX looks for any, and the shared fixtures."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)
# JAX has read it; the commands that tests start compile as users' do.
os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)

pytest_plugins = ["tests.bucket", "tests.data.fixtures", "tests.evaluation.fixtures"]

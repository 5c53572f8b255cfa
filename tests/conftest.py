"""Eight virtual CPU devices, set before JAX looks for any, and the shared fixtures."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ["tests.bucket", "tests.data.fixtures", "tests.evaluation.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick-compile",
        action="store_true",
        help="compile without most optimizations, in what the tests start as well",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick_compile"):
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

"""Eight virtual CPU devices, set before JAX looks for any, and the shared fixtures."""

import functools
import os
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from vgg_jax.models import MODELS, vgg

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ["tests.bucket", "tests.data.fixtures", "tests.evaluation.fixtures"]

# The files that take longest. They come first, so that no process of several is left
# with one of them when the others have nothing more to do.
LONGEST = (
    "tests/test_end_to_end.py",
    "tests/test_hosts.py",
    "tests/test_kill.py",
    "tests/test_examples.py",
    "tests/training/test_program.py",
    "tests/training/test_loop.py",
    "tests/training/test_steps.py",
    "tests/test_benchmarks.py",
)


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


@pytest.fixture(scope="module")
def small_vgg() -> Iterator[str]:
    """The name of a VGG of one convolution a stage, which compiles sooner than A."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "vgg8", functools.partial(vgg, ((3,),) * 5))
        yield "vgg8"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))

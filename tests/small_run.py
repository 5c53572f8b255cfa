"""A short training on Fashion-MNIST, for schedulers to stop, and what it has to become.

Two hosts with a device each are compared with one process that has two devices and was
never stopped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.config import DataConfig
from vgg_jax.distributed import make_mesh
from vgg_jax.training.program import build_program
from vgg_jax.training.workdir.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.workdir.facts import read_config

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4  # of the largest value of a layer
SAVED_EVERY = 20  # steps
STEPS_PER_EPOCH = 59_700 / 64
WITHOUT_END = 1_000_000  # steps
# `num_epochs` may change when a run goes on: a run may be without end until
# it has been stopped in every way.
CONFIGURATION = """\
import configs.fashion_mnist_vgg
from vgg_jax.config import Config


def get_config() -> Config:
    config = configs.fashion_mnist_vgg.get_config()
    config.num_epochs = {epochs}
    return config
"""
# The learning rate is small because two hosts add up in another order than one process,
# and large steps make more of that rounding.
DATA_DIR = os.environ.get("VGG_JAX_TEST_DATA", DataConfig.data_dir)
FLAGS = (
    f"--config.data.data_dir={DATA_DIR}",
    "--config.data.validation_fraction=0.005",
    "--config.model.name=vgg11",
    "--config.model.width=0.05",
    "--config.model.dropout=0.5",
    # A run without end would else be a long one, and its reference not.
    "--config.onednn=false",
    "--config.data.on_device=false",
    "--config.optimizer.schedule=plateau",
    "--config.optimizer.warmup_epochs=0",
    "--config.optimizer.learning_rate=0.002",
    "--config.batch_size=64",
    f"--config.checkpoint_every_steps={SAVED_EVERY}",
    "--config.log_every_steps=5",
)


def write_configuration(path: Path, steps: int) -> None:
    """Writes the configuration of a run of so many steps."""
    epochs = (steps - 0.1) / STEPS_PER_EPOCH
    path.write_text(CONFIGURATION.format(epochs=epochs))


def report_difference(ours: Path, theirs: Path) -> int:
    """Compares the last checkpoints of two runs; returns the exit code.

    Raises:
        AssertionError: they are of different steps.
    """
    [*_, step], [*_, other] = saved_steps(ours), saved_steps(theirs)
    assert step == other, f"one run ended at step {step}, the other at {other}"
    parameters = [final_parameters(workdir, step) for workdir in (ours, theirs)]
    pairs = list(zip(*map(jax.tree.leaves, parameters), strict=True))
    if all(np.array_equal(one, two) for one, two in pairs):
        print(f"step {step}: the parameters are equal to the bit")
        return 0
    largest = max(np.abs(one - two).max() / np.abs(two).max() for one, two in pairs)
    print(f"step {step}: the parameters differ by {largest:.1e} of a layer's largest")
    return int(largest > TOLERANCE)


def final_parameters(workdir: Path, step: int) -> Any:
    """Reads the parameters of a checkpoint."""
    config = read_config(workdir)
    state = build_program(config, make_mesh()).state
    metric = f"validation_{config.optimizer.metric}"
    with Checkpoints(workdir, metric, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(state, step)[0].params)


def train_alone(workdir: Path, configuration: Path) -> None:
    """Trains in one process, on two virtual devices, and without a stop.

    Raises:
        RuntimeError: it failed; the message is what it printed.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [
        *(sys.executable, "train.py", "--config", str(configuration)),
        *("--workdir", str(workdir), *FLAGS),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def wait(is_done: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a condition.

    Raises:
        TimeoutError: it did not come true in so many seconds.
    """
    end = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > end:
            raise TimeoutError(f"expected {what} within {seconds:.0f} seconds")
        time.sleep(0.2)


def scenario(
    name: str, description: str | None, run: Callable[[Path], int], log: str
) -> int:
    """Runs a scenario as a command that can keep its folder; returns the exit code.

    Args:
        name: the module that `python -m` starts.
        description: what --help says.
        run: the scenario, which is given a folder; its result is the exit code.
        log: the file in that folder whose end is shown where the scenario fails.
    """
    parser = argparse.ArgumentParser(
        f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--keep", type=Path, help="keep the logs and runs in this folder"
    )
    values = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"vgg_jax-{name}-") as temporary:
        folder = (values.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return run(folder)
        except (RuntimeError, TimeoutError, AssertionError) as error:
            print(f"error: {error}", file=sys.stderr)
            if (folder / log).exists():
                print((folder / log).read_text()[-4000:], file=sys.stderr)
            return 1

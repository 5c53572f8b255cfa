"""Checkpoints: what comes back, and what a disk that refuses one leaves behind."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_jax.config import OptimizerConfig
from vgg_jax.distributed import make_mesh, replicated
from vgg_jax.training.checkpoint import Checkpoints, SaveError, saved_steps
from vgg_jax.training.optimizer import make_optimizer, set_learning_rate
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState

METRIC = "validation_top5_error"


def state(step: int) -> TrainState:
    """80 kB of noise, which does not compress."""
    rng = np.random.default_rng(step)
    params = {"fc8": {"kernel": jnp.asarray(rng.normal(size=(100, 200)), jnp.float32)}}
    optimizer = make_optimizer(OptimizerConfig())
    opt_state = set_learning_rate(optimizer.init(params), 1.25e-3)
    return TrainState(
        step=jnp.int32(step), params=params, batch_stats={}, opt_state=opt_state
    )


def abstract(devices: list[jax.Device]) -> TrainState:
    sharding = replicated(make_mesh(devices))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state(0)
    )


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow past 10 kB, as on a disk that is full.

    Not a fixture: pytest reports before a fixture ends, perhaps into a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_step_rate_and_plateau_come_back_on_any_number_of_devices(
    tmp_path: Path,
) -> None:
    plateau = Plateau(best=0.1 + 0.2, waited=2, drops=1)
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(7), plateau, {METRIC: 0.3})
    for devices in (jax.devices(), jax.devices()[:2]):
        with Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
            back, same = checkpoints.restore(abstract(devices), 7)
        assert same == plateau
        chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(7)))
        assert optax.tree.get(back.opt_state, "learning_rate") == np.float32(1.25e-3)


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    errors = {1: 0.5, 2: 0.3, 3: None, 4: 0.4, 5: None}
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None
        for step, error in errors.items():
            found = None if error is None else {METRIC: error}
            checkpoints.save(state(step), Plateau(), found)
        checkpoints.wait()
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        checkpoints.save(state(6), Plateau(), {METRIC: 0.35})
        checkpoints.wait()
        assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    assert saved_steps(tmp_path) == [2, 6]
    assert saved_steps(tmp_path / "nowhere") == []


def test_a_refused_save_is_told_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(drops=1), None)
        checkpoints.wait()
        with small_files():
            checkpoints.save(state(2), Plateau(), None)
            with pytest.raises(
                SaveError, match=r"checkpoint: step 1\. Is the disk full"
            ):
                # Told when the next one comes.
                checkpoints.save(state(3), Plateau(), None)
    assert saved_steps(tmp_path) == [1]


def test_a_run_goes_on_after_a_save_that_was_killed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(drops=1), None)
        checkpoints.wait()
    # What a killed save leaves, and a removal that was killed.
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "0" / "params").mkdir(parents=True)
    assert saved_steps(tmp_path) == [0, 1]
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step == 1
        checkpoints.save(state(2), Plateau(drops=2), None)
        checkpoints.wait()
        back, plateau = checkpoints.restore(abstract(jax.devices()[:1]), 2)
    assert plateau.drops == 2 and saved_steps(tmp_path) == [2]
    chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(2)))

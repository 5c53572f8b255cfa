"""Runs with random weights, for tests of what reads a workdir."""

import dataclasses
from pathlib import Path

import jax

from vgg_jax.config import Config
from vgg_jax.models import create_model
from vgg_jax.training.optimizer import make_optimizer
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import init_state
from vgg_jax.training.workdir.checkpoint import Checkpoints
from vgg_jax.training.workdir.facts import claim


def save_run(workdir: Path, config: Config, seed: int = 0) -> None:
    """A run that saved its first state and no more."""
    state = init_state(
        lambda rngs: create_model(**dataclasses.asdict(config.model), rngs=rngs),
        make_optimizer(config.optimizer),
        jax.random.key(seed),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    claim(workdir, config)
    metric = f"validation_{config.optimizer.metric}"
    with Checkpoints(workdir, metric, read_only=False) as checkpoints:
        checkpoints.save(state, Plateau(), None)
        checkpoints.wait()

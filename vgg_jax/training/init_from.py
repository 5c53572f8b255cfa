"""The weights that a run starts from where another run made them (section 3.1)."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from vgg_jax.config import Config
from vgg_jax.training.checkpoint import open_run, saved_steps
from vgg_jax.training.program import abstract_model
from vgg_jax.training.steps import TrainState, split
from vgg_jax.training.workdir import is_finished, read_config

# "The first four convolutional layers and the last three fully-connected layers" of A
# start the deeper networks. A's first four are these; the layers of these names have
# the same shapes in B, C, D and E, whose own first four (conv1_2 is one) A has not.
PRE_INITIALIZED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


def source_folder(config: Config, workdir: Path) -> Path:
    """The folder that `init_from` names."""
    assert config.init_from is not None
    there = workdir / ".." / Path(config.init_from).expanduser()
    return Path(os.path.normpath(there))


def check_source(config: Config, workdir: Path) -> None:
    """That the run which `init_from` names is finished and has something to give.

    Raises:
        ValueError: it is not, or its layers have other shapes; says what to do.
    """
    source = source_folder(config, workdir)
    if not is_finished(source):
        steps = saved_steps(source)
        state = f"is at step {steps[-1]:,}, not at its end" if steps else "is not there"
        raise ValueError(
            f"init_from={config.init_from!r}: the run in {source} {state}. Train it "
            f"first: python train.py --config configs/{source.name}.py --workdir "
            f"{source}"
        )
    layers_taken(config, read_config(source))


def layers_taken(config: Config, theirs: Config) -> tuple[str, ...]:
    """The layers whose weights come from a run with the configuration `theirs`.

    All of the same network; of another one `PRE_INITIALIZED`. With another number of
    classes the layers that this changes stay random.

    Raises:
        ValueError: a layer has another shape, or nothing is left to take.
    """
    ours, others = (_shapes(c) for c in (config, theirs))
    same = config.model.name == theirs.model.name
    wanted = [name for name in ours if same or name in PRE_INITIALIZED]
    if (config.localization is None) != (theirs.localization is None):
        wanted.remove("fc8")  # boxes are not class scores, even if there are as many
    fitting = tuple(name for name in wanted if ours[name] == others.get(name))
    differing = [
        f"  {name}: expected {ours[name]}, got {others.get(name, 'no such layer')}"
        for name in wanted
        if name not in fitting
    ]
    if not fitting or (
        differing and config.model.num_classes == theirs.model.num_classes
    ):
        raise ValueError(
            f"a {config.model.name} cannot start from the {theirs.model.name} that "
            f"init_from={config.init_from!r} names:\n"
            + ("\n".join(differing) or "  they have no layer in common")
        )
    return fitting


def take_weights(state: TrainState, config: Config, workdir: Path) -> TrainState:
    """A new run's state with the best weights of the run that `init_from` names."""
    source = source_folder(config, workdir)
    checkpoints, theirs = open_run(source)
    taken = layers_taken(config, theirs)
    params, batch_stats = (
        {name: jax.tree.map(_abstract, tree[name]) for name in taken if name in tree}
        for tree in (state.params, state.batch_stats)
    )
    with checkpoints:
        step = checkpoints.best_step
        assert step is not None
        params, batch_stats = checkpoints.load_variables(params, batch_stats, step)
    random = [name for name in state.params if name not in taken]
    print(
        f"from step {step:,} of {source}: {', '.join(taken)}; "
        f"random ({config.model.init}): {', '.join(random) or 'none'}",
        flush=True,
    )
    return dataclasses.replace(
        state,
        params=state.params | params,
        batch_stats=state.batch_stats | batch_stats,
    )


def _shapes(config: Config) -> dict[str, Any]:
    """Layer -> the shapes of its variables."""
    _, params, _ = split(abstract_model(config))
    return {
        name: {k: tuple(v.shape) for k, v in variables.items()}
        for name, variables in params.items()
    }


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

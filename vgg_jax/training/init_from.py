"""This module starts runs from the weights of another run, or of a file.

Section 3.1 trains shallow networks first; their weights start the deeper ones.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from etils.epath import Path

from vgg_jax.config import Config, Curriculum
from vgg_jax.files import beside, parse_path
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.pretrained import (
    Pretrained,
    load_pretrained,
    names_weights,
    weights_path,
    with_normalization,
)
from vgg_jax.training.program import abstract_model, validate_settings
from vgg_jax.training.steps import TrainState, split
from vgg_jax.training.workdir.checkpoint import open_run, saved_steps
from vgg_jax.training.workdir.facts import (
    is_finished,
    read_config,
    with_stored_choices,
)

# "The first four convolutional layers and the last three fully-connected layers" of A
# start the deeper networks. A's first four are these; the layers of these names have
# the same shapes in B, C, D and E, whose own first four (conv1_2 is one) A has not.
PRE_INITIALIZED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


def source_folder(config: Config, workdir: Path) -> Path:
    """Returns the folder of the run that `init_from` names."""
    assert config.init_from is not None
    return beside(workdir, config.init_from)


def prepare_start(config: Config, workdir: Path) -> tuple[Config, Pretrained | None]:
    """Finds what `init_from` names before a new run begins.

    Returns:
        The configuration, which does to pixels what the weights expect; and the weights
        of a file, or None where they are another run's, see `take_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: published weights cannot be fetched.
        ValueError: the run is not finished, or weights or normalization do not fit.
    """
    assert config.init_from is not None
    if names_weights(config, workdir):
        name = weights_path(config, workdir) or config.init_from
        pretrained = load_pretrained(config, name)
        return with_normalization(config, pretrained.loaded.normalization), pretrained
    validate_source(config, workdir)
    theirs = read_config(source_folder(config, workdir)).data
    if theirs.whiten or config.data.whiten:
        return config, None
    return with_normalization(config, Normalization(theirs.mean, theirs.std)), None


def validate_source(config: Config, workdir: Path) -> None:
    """Checks that the run which `init_from` names is finished and has fitting layers.

    Raises:
        FileNotFoundError: it is named as a file of weights, and there is none.
        ValueError: it is not finished or does not fit; the message says what to do.
    """
    source = source_folder(config, workdir)
    if not is_finished(source):
        steps = saved_steps(source)
        if not source.exists() and source.suffix:
            raise FileNotFoundError(
                f"init_from={config.init_from!r}: expected a file of weights, here or "
                f"beside the run's folder, or the folder of a run; there is no {source}"
            )
        state = f"is at step {steps[-1]:,}, not at its end" if steps else "is not there"
        raise ValueError(
            f"init_from={config.init_from!r}: the run in {source} {state}. Train it "
            f"first: python train.py --config configs/{source.name}.py --workdir "
            f"{source}"
        )
    layers_taken(config, read_config(source))


def layers_taken(config: Config, theirs: Config) -> tuple[str, ...]:
    """Names the layers whose weights come from a run with the configuration `theirs`.

    They are all layers of the same network, and `PRE_INITIALIZED` of another one. With
    another number of classes the layers that this changes stay random.

    Raises:
        ValueError: a layer has another shape, or there is nothing to take.
    """
    our_shapes, their_shapes = _shapes(config), _shapes(theirs)
    is_same_network = config.model.name == theirs.model.name
    wanted = [name for name in our_shapes if is_same_network or name in PRE_INITIALIZED]
    if (config.localization is None) != (theirs.localization is None):
        wanted.remove("fc8")  # boxes are not class scores, even if there are as many
    fitting = tuple(
        name for name in wanted if our_shapes[name] == their_shapes.get(name)
    )
    differing = [
        f"  {name}: expected {our_shapes[name]}, got "
        f"{their_shapes.get(name, 'no such layer')}"
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
    """Puts the best weights of the run that `init_from` names into a new state."""
    source = source_folder(config, workdir)
    checkpoints, theirs = open_run(source)
    taken = layers_taken(config, theirs)
    params, batch_stats = (
        {name: jax.tree.map(_abstract, tree[name]) for name in taken if name in tree}
        for tree in (state.params, state.batch_stats)
    )
    with checkpoints:
        step, params, batch_stats = checkpoints.load_best(params, batch_stats)
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


def unfinished_runs(
    config: Config | Curriculum, workdir: Path
) -> Iterator[tuple[Config, Path]]:
    """Gives each training that is still to do, with its folder, in their order.

    One configuration is one training, in `workdir`. The runs of a curriculum are in
    folders of their names below it; those that are finished with the same settings are
    left out.

    Raises:
        ValueError: before the first run begins: a run starts from one that does not
            come before it, or cannot be trained with its settings.
    """
    if isinstance(config, Config):
        yield config, workdir
        return
    _validate_curriculum(config)
    for number, (name, run) in enumerate(config.runs.items(), 1):
        folder = workdir / name
        is_done = is_finished(folder) and _has_settings(folder, run)
        state = "is finished already" if is_done else "begins or goes on"
        print(f"run {number} of {len(config.runs)}: {name} {state}", flush=True)
        if not is_done:
            yield run, folder
    print(f"all {len(config.runs)} runs are finished, in {workdir}", flush=True)


def _validate_curriculum(curriculum: Curriculum) -> None:
    """Checks the settings of all runs, and that each starts from one before it."""
    names = list(curriculum.runs)
    for i, (name, run) in enumerate(curriculum.runs.items()):
        validate_settings(run, jax.device_count())
        start = run.init_from
        is_elsewhere = start is None or parse_path(start).is_absolute()
        if not is_elsewhere and start not in names[:i]:
            raise ValueError(
                f"run {name} starts from {start!r}: expected a run before it, one of "
                f"{', '.join(names[:i]) or 'none'}"
            )


def _has_settings(workdir: Path, config: Config) -> bool:
    """Returns whether the run in a folder has all of these settings."""
    stored = read_config(workdir)
    return stored == with_stored_choices(config, stored)


def _shapes(config: Config) -> dict[str, Any]:
    """Returns the shapes of the variables of each layer that has any."""
    _, params, _ = split(abstract_model(config))
    return {
        name: {k: tuple(v.shape) for k, v in variables.items()}
        for name, variables in params.items()
    }


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

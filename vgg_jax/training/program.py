"""This module builds the compiled functions of a run without its data."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vgg_jax.compilation import single_run_options
from vgg_jax.config import Config, known_num_classes, validate
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.distributed import batch_sharding, replicated
from vgg_jax.inference.forward import Network
from vgg_jax.models import ConvNet, create_model, option_names
from vgg_jax.models.layers import BatchNorm, check_size
from vgg_jax.models.network import default_dtype
from vgg_jax.training.objectives import task_for
from vgg_jax.training.optimizer import make_optimizer, rows_at_rest, trained_layers
from vgg_jax.training.schedule import schedule_for
from vgg_jax.training.sharding import (
    FC_PARAMETERS,
    in_groups,
    placement,
    state_shardings,
)
from vgg_jax.training.steps import (
    Forward,
    TrainState,
    init_state,
    jit_train_step,
    split,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The compiled functions of a run, and their arguments as shapes with shardings.

    The mesh's devices need not exist: with those of a topology,
    `program.train_step.lower(*program.arguments).compile()` asks the compiler alone.

    Args:
        init: key -> the state before the first step.
        train_step: (state, batch, key) -> (state, sums); takes the state's memory.
        network: state -> the network as it is evaluated.
        first_row: the number of rows that rest and have made a batch's maps; 0 where
            a batch has images.
        state, batch, key: the abstract arguments of `train_step`.
    """

    init: Callable[[jax.Array], TrainState]
    train_step: Any  # jitted: it has `lower`
    network: Callable[[TrainState], Network]
    first_row: int = 0
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The abstract arguments of `train_step`."""
        return self.state, self.batch, self.key


def build_program(config: Config, mesh: Mesh) -> Program:
    """Builds the program of a configuration for the devices of a mesh.

    Raises:
        ValueError: settings that do not fit one another, or the mesh.
    """
    validate_settings(config, mesh.size)
    config = with_choices_for(mesh, config)
    shard_fc = bool(config.shard_fc)
    create = functools.partial(create_model, **dataclasses.asdict(config.model))
    model = abstract_model(config)
    check_size(model.layers, config.data.crop, config.data.crop)
    params = split(model)[1]
    if shard_fc and not FC_PARAMETERS.keys() <= params.keys():
        raise ValueError(
            f"shard_fc is for networks with {', '.join(FC_PARAMETERS)}, which "
            f"{config.model.name} with this head has not; set it to False"
        )
    if shard_fc and config.optimizer.keep_maps:
        raise ValueError(
            "optimizer.keep_maps=True keeps the maps of whole layers; expected "
            "shard_fc of False or None with it, got True"
        )
    if shard_fc and mesh.size > 1:
        images = config.batch_size // (mesh.size * config.accumulate_steps)
        mesh = in_groups(mesh, params, images)
    optimizer = make_optimizer(config.optimizer)
    first_row = 0
    trained = trained_layers(config.optimizer, list(params))
    if config.optimizer.keep_maps:
        first_row = rows_at_rest(model.layers, trained)
    init = functools.partial(
        init_state,
        lambda rngs: create(rngs=rngs),
        optimizer,
        trained_layers=trained,
    )
    key = _abstract(jax.eval_shape(jax.random.key, 0), replicated(mesh))
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(mesh, shapes)
    forward = Forward(
        graphdef=split(model)[0],
        normalization=preprocessing_of(config.data),
        place=placement(mesh),
        devices=mesh.size if platform_of(mesh) == "tpu" else None,
        remat=config.remat,
        trained_layers=trained,
        first_row=first_row,
    )

    def network(state: TrainState) -> Network:
        return Network(
            graphdef=forward.graphdef,
            variables=(state.params, state.batch_stats),
            normalization=forward.normalization,
            layers=model.layers,
        )

    return Program(
        init=jax.jit(
            init,
            out_shardings=shardings,
            compiler_options=single_run_options(platform_of(mesh)),
        ),
        train_step=jit_train_step(
            forward,
            optimizer,
            config.accumulate_steps,
            shardings,
            task_for(config).objective,
        ),
        network=network,
        first_row=first_row,
        state=jax.tree.map(_abstract, shapes, shardings),
        batch=_abstract_batch(config, mesh, model, first_row),
        key=key,
    )


def with_choices_for(mesh: Mesh, config: Config) -> Config:
    """Gives the settings that a configuration leaves to the devices their values.

    These are a `model.dtype` and a `shard_fc` of None.

    Raises:
        ValueError: the number of classes is left to the data.
    """
    platform = platform_of(mesh)
    model, shard_fc = config.model, config.shard_fc
    if model.dtype is None:
        model = dataclasses.replace(model, dtype=default_dtype(platform))
    config = dataclasses.replace(config, model=model)
    if shard_fc is None:  # the maps that `keep_maps` keeps lie whole on their devices
        shard_fc = platform == "tpu" and mesh.size > 1 and _can_shard_fc(config, mesh)
        shard_fc = shard_fc and not config.optimizer.keep_maps
    return dataclasses.replace(config, shard_fc=shard_fc)


def platform_of(mesh: Mesh) -> str:
    """Returns what kind of devices a mesh has: "cpu", "gpu" or "tpu"."""
    return str(mesh.devices.flat[0].platform)


def _can_shard_fc(config: Config, mesh: Mesh) -> bool:
    """Returns whether a network has fc6 to fc8, of widths that devices can share."""
    params = split(abstract_model(config))[1]
    if not FC_PARAMETERS.keys() <= params.keys():
        return False
    try:
        in_groups(mesh, params, images=1)
    except ValueError:
        return False
    return True


def validate_settings(config: Config, devices: int) -> None:
    """Checks all of a configuration that can be checked without building its network.

    Raises:
        ValueError: a setting that is unknown or out of range, or settings that do not
            fit one another or so many devices.
    """
    validate(config)
    validate_batch_size(config, devices)
    validate_kind(config)
    make_optimizer(config.optimizer)
    schedule_for(config.optimizer)


def validate_batch_size(config: Config, devices: int) -> None:
    """Checks that so many devices can share a batch.

    Raises:
        ValueError: the devices cannot; the message says what to use.
    """
    parts, steps = devices * config.accumulate_steps, config.accumulate_steps
    if config.batch_size % parts:
        raise ValueError(
            f"expected a batch_size that {devices} devices can share"
            + (f" in accumulate_steps={steps} parts" if steps > 1 else "")
            + f", got {config.batch_size}; use a multiple of {parts}"
        )


def validate_kind(config: Config) -> None:
    """Checks that the settings of the network are those of its family.

    Raises:
        ValueError: they are those of another family, or the network is unknown.
    """
    unknown = vars(config.model).keys() - {"name", *option_names(config.model.name)}
    if unknown:
        raise ValueError(
            f"{config.model.name} needs the other kind of settings than "
            f"{type(config.model).__name__}; start from its own file in configs/"
        )


def abstract_model(config: Config) -> ConvNet:
    """Makes a configuration's network with shapes in the place of arrays.

    Raises:
        ValueError: the number of classes is left to the data.
    """
    known_num_classes(config)
    return nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )


def has_batch_norm(config: Config) -> bool:
    """Returns whether a configuration's network has batch normalization.

    Raises:
        ValueError: the number of classes is left to the data.
    """
    return any(isinstance(row, BatchNorm) for row in abstract_model(config).layers)


def _abstract_batch(
    config: Config, mesh: Mesh, model: ConvNet, first_row: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `train_step`, with rows over the devices."""
    size, crop = config.batch_size, config.data.crop
    channels = config.model.in_channels
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((size, crop, crop, channels), jnp.uint8),
        "label": ((size,), jnp.int32),
        "weight": ((size,), jnp.float32),
    }
    if first_row:
        images = jax.ShapeDtypeStruct(fields["image"][0], jnp.float32)
        row = model.layers[first_row - 1].name
        maps = nnx.eval_shape(lambda m, x: m.features(x, (row,)), model, images)
        fields["image"] = (maps[row].shape, maps[row].dtype)
    if config.data.color_shift:
        fields["shift"] = ((size, channels), jnp.float32)
    if config.data.pad:
        fields["offset"] = ((size, 2), jnp.int32)
    if task_for(config).with_boxes:
        fields["box"] = ((size, 4), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(*shape, sharding=batch_sharding(mesh))
        for name, shape in fields.items()
    }


def _abstract(array: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

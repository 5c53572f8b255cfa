"""What a run computes: all that a configuration and a mesh decide, without data."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vgg_jax.config import Config, NiNConfig, validate
from vgg_jax.distributed import batch_sharding, replicated
from vgg_jax.models import ConvNet, create_model
from vgg_jax.models.layers import check_size
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.objectives import task_of
from vgg_jax.training.optimizer import make_optimizer
from vgg_jax.training.sharding import FC_PARAMETERS, placement, state_shardings
from vgg_jax.training.steps import Forward, TrainState, init_state, jit_steps, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The compiled functions of a run, and their arguments as shapes with shardings.

    The mesh's devices need not be there: with those of a topology,
    `program.train_step.lower(*program.arguments).compile()` asks the compiler alone.

    Args:
        init: key -> the state before the first step.
        train_step: (state, batch, key) -> (state, sums); takes the state's memory.
        eval_step: (params, batch_stats, batch) -> sums.
        state, batch, key: what `train_step` takes.
    """

    init: Callable[[jax.Array], TrainState]
    train_step: Any  # jitted, as `eval_step`: has `lower`
    eval_step: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `train_step`."""
        return self.state, self.batch, self.key

    @classmethod
    def of(cls, config: Config, mesh: Mesh) -> "Program":
        """The program of a configuration on the devices of a mesh.

        Raises:
            ValueError: settings that do not fit one another, or the mesh.
        """
        validate(config)
        validate_batch_size(config, mesh.size)
        validate_kind(config)
        create = functools.partial(create_model, **dataclasses.asdict(config.model))
        model = abstract_model(config)
        check_size(model.layers, config.data.crop, config.data.crop)
        if config.shard_fc and not FC_PARAMETERS.keys() <= {
            r.name for r in model.layers
        }:
            raise ValueError(
                f"shard_fc is for networks with {', '.join(FC_PARAMETERS)}, which "
                f"{config.model.name} with this head has not; set it to False"
            )
        optimizer = make_optimizer(config.optimizer)
        init = functools.partial(init_state, lambda rngs: create(rngs=rngs), optimizer)
        whole, rows = replicated(mesh), batch_sharding(mesh)
        key = _abstract(jax.eval_shape(jax.random.key, 0), whole)
        shapes = jax.eval_shape(init, key)
        shardings = state_shardings(mesh, shapes, shard_fc=config.shard_fc)
        forward = Forward(
            graphdef=split(model)[0],
            normalization=Normalization(config.data.mean, config.data.std),
            place=placement(mesh, shard_fc=config.shard_fc),
            remat=config.remat,
        )
        train_step, eval_step = jit_steps(
            forward,
            optimizer,
            config.accumulate_steps,
            shardings,
            task_of(config).objective,
        )
        size, crop = config.batch_size, config.data.crop
        channels = config.model.in_channels
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((size, crop, crop, channels), jnp.uint8),
            "label": ((size,), jnp.int32),
            "weight": ((size,), jnp.float32),
        }
        if config.data.color_shift:
            fields["shift"] = ((size, channels), jnp.float32)
        if task_of(config).with_boxes:
            fields["box"] = ((size, 4), jnp.float32)
        return cls(
            init=jax.jit(init, out_shardings=shardings),
            train_step=train_step,
            eval_step=eval_step,
            state=jax.tree.map(_abstract, shapes, shardings),
            batch={
                name: jax.ShapeDtypeStruct(*shape, sharding=rows)
                for name, shape in fields.items()
            },
            key=key,
        )


def validate_batch_size(config: Config, devices: int) -> None:
    """Checks that so many devices can share a batch.

    Raises:
        ValueError: they cannot; the message says what to use.
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
        ValueError: they are those of the other one.
    """
    if config.model.name.startswith("nin") != isinstance(config.model, NiNConfig):
        raise ValueError(
            f"{config.model.name} needs the other kind of settings than "
            f"{type(config.model).__name__}; start from its own file in configs/"
        )


def abstract_model(config: Config) -> ConvNet:
    """A configuration's network with shapes in the place of arrays."""
    return nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )


def _abstract(array: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

"""One step of training and one of validation: pure functions of a state and a batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from vgg_jax.metrics import Sums, classification_sums
from vgg_jax.models import ConvNet

Batch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that a step changes."""

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]  # running statistics; empty without batch normalisation
    opt_state: optax.OptState


def split(model: ConvNet) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """A model as (graphdef, params, batch_stats), plain dictionaries of arrays."""
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
    graphdef, params, batch_stats = parts
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def normalise(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    shift: jax.Array | None = None,
) -> jax.Array:
    """Pixels 0-255 minus the training set's mean, per channel: [N, H, W, C] float32.

    `shift`, [N, C] in grey levels, is added first: the random colour shift of
    section 3.1.
    """
    pixels = images.astype(jnp.float32)
    if shift is not None:
        pixels += shift[:, jnp.newaxis, jnp.newaxis]
    return (pixels - jnp.asarray(mean)) / jnp.asarray(std)


def init_state(
    create: Callable[[nnx.Rngs], ConvNet],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    """The state before the first step, from a constructor of the model."""
    _, params, batch_stats = split(create(nnx.Rngs(key)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[TrainState, Sums]:
    """One update from one mini-batch (section 3.1).

    Args:
        state: before the step.
        batch: image uint8 [N, H, W, C], label int32 [N], weight float32 [N]; where
            colours are shifted, shift float32 [N, C].
        key: the run's; each step folds its own number in, so that a resumed run draws
            the dropout of an uninterrupted one.

    Returns:
        The state after it; the batch's `classification_sums`, and "gradient_norm", the
        gradient's length before L2: not finite when the step has gone wrong.
    """
    dropout_key = jax.random.fold_in(key, state.step)
    images = normalise(batch["image"], mean, std, batch.get("shift"))

    def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, tuple[Sums, Any]]:
        model = nnx.merge(graphdef, params, state.batch_stats)
        logits = model(images, train=True, rngs=nnx.Rngs(dropout=dropout_key))
        sums = classification_sums(logits, batch["label"], batch["weight"])
        return sums["loss"] / jnp.maximum(sums["weight"], 1.0), (sums, split(model)[2])

    gradients, (sums, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    return (
        TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        ),
        sums,
    )


def eval_step(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    batch: Batch,
    *,
    graphdef: nnx.GraphDef,
    mean: Sequence[float],
    std: Sequence[float],
) -> Sums:
    """`classification_sums` of one batch, without dropout."""
    model = nnx.merge(graphdef, params, batch_stats)
    logits = model(normalise(batch["image"], mean, std))
    return classification_sums(logits, batch["label"], batch["weight"])


def jit_steps(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mean: Sequence[float],
    std: Sequence[float],
    state_shardings: TrainState,
) -> tuple[Callable[..., tuple[TrainState, Sums]], Callable[..., Sums]]:
    """Both steps compiled; the train step reuses the memory of its state."""
    statistics: dict[str, Any] = {"mean": mean, "std": std}
    return (
        jax.jit(
            functools.partial(
                train_step, graphdef=graphdef, optimizer=optimizer, **statistics
            ),
            donate_argnums=0,
            out_shardings=(state_shardings, None),
        ),
        jax.jit(functools.partial(eval_step, graphdef=graphdef, **statistics)),
    )

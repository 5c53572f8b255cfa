"""This module has the training step, a pure function of a state and a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax import lax

from vgg_jax.console import did_you_mean
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import BatchNorm, stages
from vgg_jax.models.network import class_scores
from vgg_jax.preprocessing import Preprocessing, translate
from vgg_jax.training.objectives import CLASSIFICATION, Objective, Sums
from vgg_jax.training.sharding import Placement

Batch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """The training state, which is all that a step changes.

    Args:
        step: the number of steps so far, int32.
        params: the parameters of each layer.
        batch_stats: the running statistics; empty without batch normalization.
        opt_state: the state of the optimizer, which has the learning rate and, of the
            layers that are trained alone, the momentum.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: optax.OptState


def split(model: ConvNet) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Splits a model into (graphdef, params, batch_stats), plain dictionaries."""
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
    graphdef, params, batch_stats = parts
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def init_state(
    create: Callable[[nnx.Rngs], ConvNet],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    trained_layers: tuple[str, ...] = (),
) -> TrainState:
    """Makes the state before the first step, from a constructor of the model.

    Raises:
        ValueError: there is no layer of a name in `trained_layers`.
    """
    _, params, batch_stats = split(create(nnx.Rngs(key)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained_parameters(params, trained_layers)),
    )


def trained_parameters(
    params: dict[str, Any], trained_layers: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the parameters of the layers that are trained; () trains all.

    Raises:
        ValueError: there are no parameters of such a layer; the message names the
            nearest.
    """
    for name in trained_layers:
        if name not in params:
            raise ValueError(
                f"optimizer.trained_layers: no weights of a layer {name!r}: "
                f"{did_you_mean(name, params)}"
            )
    return {name: params[name] for name in trained_layers or params}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
    """The forward pass of training, from a batch to class scores.

    Args:
        graphdef: the network's static part, see `split`.
        normalization: what is done to pixels before the network sees them.
        place: puts each layer's input where its weights are, see `sharding.placement`.
        devices: how many TPUs share a batch; None for other devices, which need not
            know, and trace the faster without.
        remat: whether only the input of each stage is kept, and what is between is
            computed again for the gradient.
        trained_layers: the names of the layers that are trained; () trains all. Batch
            normalization that is not trained runs with its running statistics, which
            stay as they are.
        first_row: the number of the network's rows that have made what a batch has in
            the place of images, see `kept_maps`; 0 for images.
    """

    graphdef: nnx.GraphDef
    normalization: Preprocessing
    place: Placement
    devices: int | None
    remat: bool
    trained_layers: tuple[str, ...] = ()
    first_row: int = 0

    def __call__(
        self,
        params: dict[str, Any],
        batch_stats: dict[str, Any],
        batch: Batch,
        *,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Computes scores before soft-max and the running statistics after the batch.

        The scores are float32 [N, num_classes].

        Args:
            params, batch_stats: the variables of the network.
            batch: the batch that `train_step` takes. Images of weight 0 do not enter
                batch statistics; the label does not matter.
            keys: the key of each image's dropout, [N]; None leaves dropout out.
        """
        x = batch["image"]
        if not self.first_row:
            x = self.normalization(x, batch.get("shift"))
        if "offset" in batch:
            x = translate(x, batch["offset"])
        weight = batch.get("weight")
        counted = None if weight is None else weight > 0
        rows = self._model(params, batch_stats).layers[self.first_row :]
        for layers in stages(rows, after_pools=self.remat):

            def run(
                params: Any, batch_stats: Any, x: jax.Array, layers: Any = layers
            ) -> tuple[jax.Array, dict[str, Any]]:
                model = self._model(params, batch_stats)
                train = None if keys is not None else False
                x = model.run(x, layers, train=train, rngs=keys, counted=counted)
                return x, split(model)[2]

            run = jax.checkpoint(run) if self.remat else run
            x, batch_stats = run(params, batch_stats, self.place(layers[0], x))
        return self.place(None, class_scores(x)), batch_stats

    def _model(self, params: dict[str, Any], batch_stats: dict[str, Any]) -> ConvNet:
        """Makes the network, its layers in the mode of training or as they were."""
        model: ConvNet = nnx.merge(self.graphdef, params, batch_stats)
        model.train()
        model.devices = self.devices
        for layer in model.layers if self.trained_layers else ():
            if isinstance(layer, BatchNorm) and layer.name not in self.trained_layers:
                getattr(model, layer.name).use_running_average = True
        return model


def image_keys(key: jax.Array, step: jax.Array, count: int) -> jax.Array:
    """Makes the dropout keys of a step's images, [count].

    Each is a function of the run's key, the step and the image's place in the batch.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(
        jnp.arange(count)
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    forward: Forward,
    optimizer: optax.GradientTransformation,
    accumulate_steps: int,
    objective: Objective = CLASSIFICATION.objective,
) -> tuple[TrainState, Sums]:
    """Updates the state from one mini-batch (section 3.1).

    Args:
        state: the state before the step.
        batch: image uint8 [N, H, W, C], label int32 [N], weight float32 [N]; where
            colors are shifted, shift float32 [N, C]; where crops are padded, offset
            int32 [N, 2]; to learn boxes, box float32 [N, 4].
        key: the run's dropout key; see `image_keys`.
        forward: the network, and which of its layers are trained; nothing is computed
            for the gradients of the others.
        optimizer: the optimizer of the trained layers' parameters.
        accumulate_steps: the number of parts of the batch that are computed one after
            another, with the update of the whole batch; batch normalization takes the
            statistics of each part.
        objective: the sums that are to be learned; see `Task`.

    Returns:
        The state after it; the batch's sums of the `objective`, and "gradient_norm",
        the length before L2 of the gradient by the layers that are trained: not finite
        when the step has gone wrong.
    """
    weight = jnp.maximum(jnp.sum(batch["weight"]), 1.0)
    trained = trained_parameters(state.params, forward.trained_layers)

    def loss_fn(
        trained: dict[str, Any], batch_stats: dict[str, Any], part: Batch
    ) -> tuple[jax.Array, tuple[Sums, dict[str, Any]]]:
        params = state.params | trained
        outputs, batch_stats = forward(params, batch_stats, part, keys=part["key"])
        sums = objective(outputs, part)
        return sums["loss"] / weight, (sums, batch_stats)

    def microbatch_sums(
        batch_stats: dict[str, Any], part: Batch
    ) -> tuple[tuple[dict[str, Any], Sums], dict[str, Any]]:
        gradient = jax.grad(loss_fn, has_aux=True)
        gradients, (sums, batch_stats) = gradient(trained, batch_stats, part)
        return (gradients, sums), batch_stats

    def accumulate(total: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], None]:
        added, batch_stats = microbatch_sums(total[1], part)
        return (jax.tree.map(jnp.add, total[0], added), batch_stats), None

    batch = batch | {"key": image_keys(key, state.step, len(batch["image"]))}
    if accumulate_steps == 1:
        (gradients, sums), batch_stats = microbatch_sums(state.batch_stats, batch)
    else:
        parts = jax.tree.map(lambda a: microbatches(a, accumulate_steps), batch)
        part = jax.tree.map(lambda a: a[0], parts)
        shapes, _ = jax.eval_shape(microbatch_sums, state.batch_stats, part)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        ((gradients, sums), batch_stats), _ = lax.scan(
            accumulate, (zeros, state.batch_stats), parts
        )
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    return (
        TrainState(
            step=state.step + 1,
            params=state.params | optax.apply_updates(trained, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        ),
        sums,
    )


def microbatches(rows: jax.Array, count: int) -> jax.Array:
    """Divides the rows of a batch: [N, ...] -> [count, N / count, ...].

    Each device's rows are dealt out in turn, so that none moves to another device.
    """
    return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)


def jit_train_step(
    forward: Forward,
    optimizer: optax.GradientTransformation,
    accumulate_steps: int,
    state_shardings: TrainState,
    objective: Objective = CLASSIFICATION.objective,
) -> Callable[..., tuple[TrainState, Sums]]:
    """Compiles the training step; it reuses the memory of its state."""
    step = functools.partial(
        train_step,
        forward=forward,
        optimizer=optimizer,
        accumulate_steps=accumulate_steps,
        objective=objective,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))

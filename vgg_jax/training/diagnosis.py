"""This module finds out why a network does not start to learn, layer by layer."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vgg_jax.config import Config, known_num_classes
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.inference.forward import Extras, Network
from vgg_jax.models import MODELS, ConvNet, nin
from vgg_jax.models.layers import Conv, Relu
from vgg_jax.training.objectives import classification_sums
from vgg_jax.training.optimizer import learning_rate
from vgg_jax.training.program import abstract_model
from vgg_jax.training.steps import Batch, TrainState, split

IMAGES = 8  # images of a batch, enough to see what the layers do

# Lengths of the first update over that of the weights. The paper trains for 370K steps:
# at less than a millionth each the weights stay what they were, and the L2 penalty
# (5e-6 a step at its rate) is stronger. At their own length each, nothing stays.
SHORTEST_STEP = 1e-6
LONGEST_STEP = 1.0

# A loss this near to that of equal posteriors, for an epoch and so many steps at least,
# is no slow start.
BAND = 0.01
LONG_ENOUGH = 500


@dataclasses.dataclass(frozen=True)
class Signal:
    """The activations and gradients of one layer with weights, on a few images.

    Args:
        layer: the layer's name.
        activation: the standard deviation of its output.
        gradient: the standard deviation of the gradient of the loss by its kernel.
        step: the length of one update by that gradient, over that of the kernel.
        dead: the share of its channels that the ReLU leaves at 0 everywhere.
    """

    layer: str
    activation: float
    gradient: float
    step: float
    dead: float


def measure_signals(
    config: Config,
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    batch: Batch,
    *,
    rate: float,
) -> tuple[float, list[Signal]]:
    """Measures the loss and each layer, from the input on, in training mode.

    Args:
        batch: a batch of `train_step`, of which the first `IMAGES` images are used.
        rate: the learning rate, of which `Signal.step` is a multiple.
    """
    # The scheme made the weights and has no part in this: one program for all of them.
    same_init = dataclasses.replace(config.model, init="glorot")
    model = abstract_model(dataclasses.replace(config, model=same_init))
    network = Network(
        graphdef=split(model)[0],
        variables=(params, batch_stats),
        normalization=preprocessing_of(config.data),
        layers=model.layers,
    )
    loss, values_of_layers = jax.device_get(
        network.run(
            LayerSignals(),
            batch["image"][:IMAGES],
            extras={"label": batch["label"][:IMAGES]},
        )
    )
    signals = []
    for layer in model.layers:
        if layer.name in values_of_layers:
            values = {k: float(v) for k, v in values_of_layers[layer.name].items()}
            values["step"] *= rate
            signals.append(Signal(layer.name, **values))
    return float(loss), signals


@dataclasses.dataclass(frozen=True)
class LayerSignals:
    """The head that gives the loss in training mode, and each layer's signal at rate 1.

    It takes "label", int [N], and differentiates the loss by the parameters. A signal
    is a dictionary of the fields of `Signal`.
    """

    extras: ClassVar[tuple[str, ...]] = ("label",)

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
        """Computes loss and signals of normalized images [N, H, W, C], with dropout."""
        graphdef, params, batch_stats = split(model)
        labels = extras["label"]

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
            model = nnx.merge(graphdef, params, batch_stats)
            maps: dict[str, jax.Array] = {}
            rngs = nnx.Rngs(dropout=0)
            model.run(images, model.layers, train=True, rngs=rngs, collect=maps)
            signals: dict[str, dict[str, jax.Array]] = {}
            for layer in model.layers:
                x = maps[layer.name].astype(jnp.float32)
                if isinstance(layer, Conv):
                    signal = {"activation": x.std(), "dead": jnp.zeros(())}
                    signals[layer.name] = signal
                elif isinstance(layer, Relu):
                    signal["dead"] = (x <= 0).all((0, 1, 2)).mean()
            sums = classification_sums(x.mean((1, 2)), labels, jnp.ones(len(labels)))
            return sums["loss"] / len(labels), signals

        (loss, signals), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        for name, signal in signals.items():
            kernel, gradient = params[name]["kernel"], gradients[name]["kernel"]
            signal["gradient"] = gradient.std()
            signal["step"] = jnp.linalg.norm(gradient) / jnp.linalg.norm(kernel)
        return loss, signals


def finding(signals: list[Signal]) -> str | None:
    """Says in a sentence what is wrong with the layers; None if nothing is."""
    steps = [signal.step for signal in signals]
    widest = max(signals, key=lambda s: s.step)
    if not all(map(math.isfinite, steps)) or widest.step > LONGEST_STEP:
        return (
            "the signal grows from layer to layer: one step would change "
            f"{widest.layer} by {widest.step:.2g} times its weights' length"
        )
    dead = [signal.layer for signal in signals if signal.dead == 1.0]
    if dead:
        return (
            f"the ReLU after {dead[0]} gives 0 for every image: no gradient passes it"
        )
    if statistics.median(steps) < SHORTEST_STEP:
        return (
            "the signal fades from layer to layer, to a deviation of "
            f"{signals[-1].activation:.2g} at {signals[-1].layer}: one step changes "
            f"the weights by {statistics.median(steps):.2g} of their length"
        )
    return None


# (whether a configuration may gain from a change, the change).
REMEDIES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda config: config.model.init in ("caffe_001", "paper"),
        "model.init=glorot or he (the deviation of caffe_001 is too small for deep "
        "networks, that of paper too large), or init_from a trained shallower network",
    ),
    (
        lambda config: config.model.init == "he" and max(config.data.std) == 1,
        "model.init=glorot, or data.std of about 60, for pixels are 0-255",
    ),
    (
        lambda config: config.model.name == "nin_tutorial",
        "another seed: its ReLU on the scores can leave classes without a gradient",
    ),
    (
        lambda config: MODELS[config.model.name].func is nin,
        "optimizer.learning_rate=0.01: NiN often stays put at 0.1",
    ),
    (lambda config: True, "a tenth of optimizer.learning_rate"),
)


class StallDetector:
    """Notices a loss that stays at ln(num_classes), the loss of equal posteriors.

    Args:
        config: the configuration of a network that classifies.
        steps_per_epoch: the run's number; a loss must stay for an epoch at least.
    """

    def __init__(self, config: Config, steps_per_epoch: float):
        self.chance = math.log(known_num_classes(config))
        self.patience = max(LONG_ENOUGH, math.ceil(steps_per_epoch))
        self._stalled_steps = 0

    def update(self, steps: int, loss: float) -> bool:
        """Takes the mean loss of so many steps; True when it has stayed long enough.

        The count then begins anew, so that the next True comes after as long again.
        """
        is_near = abs(loss - self.chance) < BAND * self.chance
        self._stalled_steps = self._stalled_steps + steps if is_near else 0
        if self._stalled_steps < self.patience:
            return False
        self._stalled_steps = 0
        return True


def diagnosis(
    config: Config, detector: StallDetector, state: TrainState, batch: Batch
) -> str:
    """Warns of a stalled run: what its layers look like, and what to change."""
    rate = float(learning_rate(state.opt_state))
    _, signals = measure_signals(
        config, state.params, state.batch_stats, batch, rate=rate
    )
    problem = finding(signals)
    return (
        f"the loss has stayed at ln({config.model.num_classes}) = "
        f"{detector.chance:.4g}, that of equal posteriors, for "
        f"{detector.patience:,} steps: the network has not started to learn. "
        + (f"Here {problem}. " if problem else "")
        + "Try, in a new --workdir: "
        + "; ".join(text for applies, text in REMEDIES if applies(config))
    )

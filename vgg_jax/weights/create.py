"""This module makes networks of the papers that have weights of others already."""

import os
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from vgg_jax import models
from vgg_jax.models import ConvNet
from vgg_jax.models.network import Randomness
from vgg_jax.weights.load import abstract_network, load_weights


def create_model(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    source: str | None = None,
    channels: str | None = None,
    rngs: Randomness | None = None,
    **options: Any,
) -> ConvNet:
    """Returns a network of the papers by its name; it evaluates.

    `load_weights` says, too, what images the weights want, and names their classes.

    Args:
        name: a key of `MODELS`, such as "vgg16" (Table 1, D) or "nin_imagenet".
        weights: a file of weights, or the name of published ones such as
            "torchvision/vgg16"; None for fresh weights.
        source, channels: what `load_weights` takes where `weights` do not tell whose
            they are, or in which order their color channels lie.
        rngs: a key, or `nnx.Rngs(0)`, whose "params" stream makes the fresh weights.
            Where `weights` are given it may be left out: what they do not fill, such as
            the layer of another number of classes, is then made from `key(0)`.
        **options: keywords of `vgg` or `nin`, such as num_classes, width, dropout and
            head, and of `ConvNet`: in_channels, init, dtype, keep_rngs. None for an
            option that the name itself sets leaves it so: lrn of "vgg11_lrn".

    Raises:
        TypeError: neither `weights` nor `rngs`; `source` or `channels` without weights.
        ValueError: an unknown name, option or choice, of which the message names the
            nearest; or weights of another network, see `load_weights`.
    """
    if weights is None:
        if source is not None or channels is not None:
            raise TypeError("source and channels are of weights, and there are none")
        if rngs is None:
            raise TypeError(
                "expected rngs, such as jax.random.key(0), to make weights from, or "
                "weights, a file or a name such as 'torchvision/vgg16'"
            )
        return models.create_model(name, rngs=rngs, **options)
    if rngs is not None:
        model = models.create_model(name, rngs=rngs, **options)
        load_weights(model, weights, source, channels=channels)
        return model
    model = abstract_network(name, **options)
    load_weights(model, weights, source, channels=channels)
    complete(model, name, options)
    return model


def complete(model: ConvNet, name: str, options: Mapping[str, Any]) -> None:
    """Gives the variables that have only shapes those of a network of `key(0)`.

    Args:
        model: a network of `abstract_network`, some of whose variables are filled.
        name, options: what made it.
    """
    missing = {
        path: variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }
    if not missing:
        return

    def values() -> list[Any]:
        fresh = models.create_model(name, rngs=jax.random.key(0), **options)
        made = dict(nnx.to_flat_state(nnx.state(fresh)))
        return [made[path].get_value() for path in missing]

    for variable, value in zip(missing.values(), jax.jit(values)(), strict=True):
        variable.set_value(value)
    nnx.update(model, nnx.from_flat_state(missing))

"""The networks by name."""

import functools
import inspect
from typing import Any

from flax import nnx

from vgg_jax.console import did_you_mean
from vgg_jax.models import nin
from vgg_jax.models.network import ConvNet
from vgg_jax.models.nin import NiN
from vgg_jax.models.vgg import STAGES, VGG

MODELS: dict[str, functools.partial[Any]] = {
    "vgg11": functools.partial(VGG, STAGES["A"]),
    "vgg11_lrn": functools.partial(VGG, STAGES["A"], lrn="krizhevsky"),
    "vgg13": functools.partial(VGG, STAGES["B"]),
    "vgg16_c": functools.partial(VGG, STAGES["C"]),
    "vgg16": functools.partial(VGG, STAGES["D"]),
    "vgg19": functools.partial(VGG, STAGES["E"]),
    "vgg11_bn": functools.partial(VGG, STAGES["A"], batch_norm=True),
    "vgg13_bn": functools.partial(VGG, STAGES["B"], batch_norm=True),
    "vgg16_bn": functools.partial(VGG, STAGES["D"], batch_norm=True),
    "vgg19_bn": functools.partial(VGG, STAGES["E"], batch_norm=True),
    "nin_imagenet": functools.partial(NiN, nin.IMAGENET),
    "nin_cifar": functools.partial(NiN, nin.CIFAR),
    "nin_tutorial": functools.partial(NiN, nin.TUTORIAL, final_relu=True),
}


def create_model(name: str, *, rngs: nnx.Rngs, **options: Any) -> ConvNet:
    """A network of the papers by its name, a key of `MODELS`, with fresh weights.

    Args:
        name: such as "vgg16" (Table 1, D) or "nin_imagenet".
        rngs: `nnx.Rngs(0)`; its "params" stream makes the weights.
        **options: keywords of `VGG` or `NiN`: num_classes, in_channels, width, dropout,
            init, dtype, and the head's.

    Raises:
        ValueError: an unknown name, option or choice; the message names the nearest.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: {did_you_mean(name, MODELS)}")
    init = inspect.signature(MODELS[name].func.__init__)
    accepted = [
        p.name
        for p in init.parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "rngs"
    ]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"{name} has no option {option!r}: {did_you_mean(option, accepted)}"
            )
    return MODELS[name](**options, rngs=rngs)


__all__ = ["MODELS", "VGG", "ConvNet", "NiN", "create_model"]

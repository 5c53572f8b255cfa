"""This package holds the networks of the papers, and makes them by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from vgg_jax.console import did_you_mean
from vgg_jax.models.network import ConvNet, FeatureInfo, Randomness
from vgg_jax.models.nin import CIFAR, IMAGENET, TUTORIAL, nin
from vgg_jax.models.vgg import STAGES, vgg

# A name is a builder with some of its arguments; `MODELS[name].func` is the builder.
MODELS: dict[str, functools.partial[ConvNet]] = {
    "vgg11": functools.partial(vgg, STAGES["A"]),
    "vgg11_lrn": functools.partial(vgg, STAGES["A"], lrn="krizhevsky"),
    "vgg13": functools.partial(vgg, STAGES["B"]),
    "vgg16_c": functools.partial(vgg, STAGES["C"]),
    "vgg16": functools.partial(vgg, STAGES["D"]),
    "vgg19": functools.partial(vgg, STAGES["E"]),
    "vgg11_bn": functools.partial(vgg, STAGES["A"], batch_norm=True),
    "vgg13_bn": functools.partial(vgg, STAGES["B"], batch_norm=True),
    "vgg16_bn": functools.partial(vgg, STAGES["D"], batch_norm=True),
    "vgg19_bn": functools.partial(vgg, STAGES["E"], batch_norm=True),
    "nin_imagenet": functools.partial(nin, IMAGENET),
    "nin_cifar": functools.partial(nin, CIFAR),
    "nin_tutorial": functools.partial(nin, TUTORIAL, final_relu=True),
}

VGG, NiN = vgg, nin  # the builders by the names of the classes that they once were


def create_model(name: str, *, rngs: Randomness, **options: Any) -> ConvNet:
    """Returns a network of the papers by its name, with fresh weights; it evaluates.

    Args:
        name: a key of `MODELS`, such as "vgg16" (Table 1, D) or "nin_imagenet".
        rngs: a key, or `nnx.Rngs(0)`, whose "params" stream makes the weights.
        **options: keywords of `vgg` or `nin`, such as num_classes, width, dropout and
            head, and of `ConvNet`: in_channels, init, dtype, keep_rngs. None for an
            option that the name itself sets leaves it so: lrn of "vgg11_lrn".

    Raises:
        ValueError: an unknown name, option or choice; the message names the nearest.
    """
    build = network_named(name)
    accepted = option_names(name)
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"{name} has no option {option!r}: {did_you_mean(option, accepted)}"
            )
    chosen = {
        option: value
        for option, value in options.items()
        if value is not None or option not in build.keywords
    }
    return build(**chosen, rngs=rngs)


def network_named(name: str) -> functools.partial[ConvNet]:
    """Returns the entry of `MODELS`.

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: {did_you_mean(name, MODELS)}")
    return MODELS[name]


def option_names(name: str) -> list[str]:
    """Returns the options that `create_model` takes for a name.

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """
    builders: tuple[Callable[..., Any], ...] = (
        network_named(name).func,
        ConvNet.__init__,
    )
    keywords = (
        parameter.name
        for builder in builders
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "rngs"
    )
    return list(dict.fromkeys(keywords))


__all__ = [
    "MODELS",
    "VGG",
    "ConvNet",
    "FeatureInfo",
    "NiN",
    "create_model",
    "nin",
    "option_names",
    "vgg",
]

"""This module gives the networks as modules of Flax Linen."""

from typing import Any

from flax import nnx
from flax.core import FrozenDict

from vgg_jax.models import create_model


class LinenConvNet(nnx.bridge.ToLinen):
    """A network as a Linen module with the methods `score_map` and `features`.

    `nnx.bridge.to_linen(create_model, ...)` makes the same module without the methods;
    there `apply(..., nnx_method="score_map")` calls that of the NNX module.
    """

    def score_map(self, *args: Any, **options: Any) -> Any:
        """Computes `ConvNet.score_map`, for `apply(..., method="score_map")`."""
        return self(*args, nnx_method="score_map", **options)

    def features(self, *args: Any, **options: Any) -> Any:
        """Computes `ConvNet.features`, for `apply(..., method="features")`."""
        return self(*args, nnx_method="features", **options)


def to_linen(network: str, *, name: str | None = None, **options: Any) -> LinenConvNet:
    """Returns a network of the papers as a Linen module.

    Its dropout takes the "dropout" key of `apply(..., train=True, rngs=...)`, and its
    running statistics are the collection "batch_stats".

    Args:
        network: a key of `vgg_jax.MODELS`.
        name: the name that the module has inside another one.
        **options: the options of `create_model`.

    Raises:
        ValueError: an unknown network, option or choice, once the module is run.
    """
    kwargs: FrozenDict[str, Any] = FrozenDict({"keep_rngs": True, **options})
    return LinenConvNet(create_model, args=(network,), kwargs=kwargs, name=name)

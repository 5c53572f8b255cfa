"""This module lays a training state on devices, whole or with shared layers.

Fully-connected layers, which are 89% of VGG-16's weights, can be shared out over the
mesh's axis "data".
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.distributed import DATA, replicated
from vgg_jax.models.layers import Layer

# Sharded fully-connected layers: each device has some outputs of fc6 and of fc7, and
# the weights of fc8 from those of fc7. Gradients and momentum are where the weights
# are; what travels is the layers' input, in VGG-16 [batch, 25088] and [batch, 4096]
# numbers where the gradients have 123 million.
_ROWS, _WHOLE, _CHANNELS = P(DATA), P(), P(None, None, None, DATA)
_BY_OUTPUT = {"kernel": P(None, None, None, DATA), "bias": P(DATA)}
_BY_INPUT = {"kernel": P(None, None, DATA), "bias": P()}
FC_PARAMETERS = {"fc6": _BY_OUTPUT, "fc7": _BY_OUTPUT, "fc8": _BY_INPUT}
# How each takes its input [N, 1, 1, C], the last; the first is how the layer before
# leaves it, which says to the compiler that gradients go back as pieces of a sum.
FC_INPUTS = {"fc6": (_ROWS, _WHOLE), "fc7": (_CHANNELS, _WHOLE), "fc8": (_CHANNELS,)}


def state_shardings(mesh: Mesh, state: Any, *, shard_fc: bool) -> Any:
    """Returns the sharding of each array of a state: whole, or as `FC_PARAMETERS` says.

    Args:
        mesh: the devices.
        state: a tree of arrays or their shapes; the last two names of a path decide, so
            that an optimizer's copy of a parameter lies where the parameter does.
        shard_fc: whether to shard the fully-connected layers.

    Raises:
        ValueError: the devices cannot share a layer evenly.
    """

    def place(path: Any, array: Any) -> NamedSharding:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        layer, parameter = names[-2:] if len(names) > 1 else ("", "")
        if not shard_fc or layer not in FC_PARAMETERS:
            return replicated(mesh)
        sharding = NamedSharding(mesh, FC_PARAMETERS[layer][parameter])
        try:
            sharding.shard_shape(array.shape)
        except ValueError as error:
            raise ValueError(
                f"expected {layer} of a width that {mesh.size} devices can share, got "
                f"{parameter} {list(array.shape)}; set shard_fc to False"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(place, state)


Placement = Callable[[Layer | None, jax.Array], jax.Array]


def placement(mesh: Mesh, *, shard_fc: bool) -> Placement:
    """Makes a function (layer, its input) -> the input where the layer's weights are.

    The layer None stands for the loss, which takes rows.
    """

    def place(layer: Layer | None, x: jax.Array) -> jax.Array:
        specs = (_ROWS,) if layer is None else FC_INPUTS.get(layer.name, ())
        for spec in specs if shard_fc else ():
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        return x

    return place

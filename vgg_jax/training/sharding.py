"""This module lays a training state on devices, whole or with shared layers.

Fully-connected layers, 89% of VGG-16's weights, can be shared out. The devices of a
mesh then stand in groups: the members of a group share the layers, and the groups add
up their gradients. Were all devices one group, each would meet the images of all, and
what it sends would grow with their number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.distributed import replicated
from vgg_jax.models.layers import Layer

GROUPS, MEMBERS = "groups", "members"  # the axes of a mesh in groups

# Each member has some outputs of fc6 and of fc7, and the weights of fc8 from those of
# fc7. Gradients and momentum are where the weights are; what travels within a group is
# the layers' input, in VGG-16 25,088 and 4,096 numbers an image, where the gradients
# have 124 million.
_ROWS, _WHOLE, _CHANNELS = (
    P((GROUPS, MEMBERS)),
    P(GROUPS),
    P(GROUPS, None, None, MEMBERS),
)
_BY_OUTPUT = {"kernel": P(None, None, None, MEMBERS), "bias": P(MEMBERS)}
_BY_INPUT = {"kernel": P(None, None, MEMBERS), "bias": P()}
FC_PARAMETERS = {"fc6": _BY_OUTPUT, "fc7": _BY_OUTPUT, "fc8": _BY_INPUT}
# How each takes its input [N, 1, 1, C], the last; the first is how the layer before
# leaves it, which says to the compiler that gradients go back as pieces of a sum.
_FC_INPUTS = {"fc6": (_ROWS, _WHOLE), "fc7": (_CHANNELS, _WHOLE), "fc8": (_CHANNELS,)}


def in_groups(mesh: Mesh, params: Mapping[str, Any], images: int) -> Mesh:
    """Arranges the devices of a mesh in groups that share fully-connected layers.

    Args:
        mesh: the devices.
        params: the parameters of the network's layers, or their shapes.
        images: how many of a batch each device has.

    Raises:
        ValueError: no number of devices above one can share the layers evenly.
    """
    kernels = [params[name]["kernel"].shape for name in FC_PARAMETERS]
    members = members_of_group(mesh.size, kernels, images)
    if members == 1:
        widths = " and ".join(str(shape[-1]) for shape in kernels[:-1])
        raise ValueError(
            f"expected fc6 and fc7 of widths that some of {mesh.size} devices can "
            f"share evenly, got {widths}; set shard_fc to False"
        )
    return Mesh(
        mesh.devices.reshape(-1, members),
        (GROUPS, MEMBERS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def members_of_group(
    devices: int, kernels: Sequence[tuple[int, ...]], images: int
) -> int:
    """Returns how many devices share layers so that the least is moved.

    The more members, the fewer weights has each: the gradients that it adds up with the
    other groups, and what its update reads and writes. But it meets the images of all.

    Args:
        devices: how many there are.
        kernels: the shapes of the layers' kernels, [kh, kw, I, O].
        images: how many of a batch each device has.

    Returns:
        A number of devices that divides all of them and the layers' widths; 1 if no
        other does.
    """
    *by_output, last = kernels
    numbers = sum(math.prod(shape[:-1]) for shape in by_output) + last[-1]
    weights = sum(map(math.prod, kernels))
    shares = math.gcd(devices, *(shape[-1] for shape in by_output))

    def moved(members: int) -> float:
        """Returns how many numbers a device moves.

        A layer's input goes to the members and its gradient comes back. So do gradients
        of weights over groups; the update moves some 20 bytes for each weight, on a TPU
        in the time in which two numbers go to another chip.
        """
        back_and_forth = numbers * images * (members - 1)
        own_weights = weights / members
        return 2 * (back_and_forth + own_weights * (2 - members / devices))

    counts = [n for n in range(2, shares + 1) if shares % n == 0]
    return min(counts, key=moved, default=1)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of each array of a state.

    It is whole on each device; on a mesh in groups, fully-connected layers are shared.

    Args:
        mesh: the devices.
        state: a tree of arrays or their shapes; the last two names of a path decide, so
            that an optimizer's copy of a parameter lies where the parameter does.
    """

    def place(path: Any, array: Any) -> NamedSharding:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        layer, parameter = names[-2:] if len(names) > 1 else ("", "")
        if MEMBERS not in mesh.axis_names or layer not in FC_PARAMETERS:
            return replicated(mesh)
        return NamedSharding(mesh, FC_PARAMETERS[layer][parameter])

    return jax.tree_util.tree_map_with_path(place, state)


Placement = Callable[[Layer | None, jax.Array], jax.Array]


def placement(mesh: Mesh) -> Placement:
    """Makes a function (layer, its input) -> the input where the layer's weights are.

    The layer None stands for the loss, which takes rows.
    """

    def place(layer: Layer | None, x: jax.Array) -> jax.Array:
        specs = (_ROWS,) if layer is None else _FC_INPUTS.get(layer.name, ())
        for spec in specs if MEMBERS in mesh.axis_names else ():
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        return x

    return place

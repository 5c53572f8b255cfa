"""This module describes what is exported: a network, its input and its output."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vgg_jax.console import did_you_mean
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Layer, smallest_size
from vgg_jax.preprocessing import Normalization
from vgg_jax.version import __version__

# What the exported network takes: images that are normalized already, or pixels 0-255
# of either type, [N, H, W, C], which it normalizes itself.
INPUTS = ("normalized", "uint8", "float32")
# What it gives besides the map of a row: class scores, their soft-max, and the dense
# score map of section 3.2.
OUTPUTS = ("scores", "posteriors", "score_map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A network with what goes in and what comes out.

    Args:
        model: the network.
        output: one of `OUTPUTS`; or the name of a row, whose map is given and after
            which the network ends.
        input: one of `INPUTS`.
        normalization: what is to be done to pixels 0-255; it is needed where `input`
            is pixels.
        class_names: the names of the classes.
        facts: what else is known, such as whose weights they are; values of JSON.

    Raises:
        ValueError: an unknown input or output, of which the message names the nearest;
            or values that do not fit the network.
    """

    model: ConvNet
    output: str = "scores"
    input: str = "normalized"
    normalization: Normalization | None = None
    class_names: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what does not fit the network."""
        model = self.model
        names = [row.name for row in model.layers]
        model.refuse_replaced("an export")
        if self.output not in (*OUTPUTS, *names):
            raise ValueError(
                f"unknown output {self.output!r}: "
                f"{did_you_mean(self.output, (*OUTPUTS, *names))}"
            )
        if self.output in OUTPUTS and model.num_classes is None:
            raise ValueError(
                f"expected the name of a layer as the output of a backbone, such as "
                f"{names[-1]!r}, got {self.output!r}, which needs classes"
            )
        if self.input not in INPUTS:
            raise ValueError(
                f"unknown input {self.input!r}: {did_you_mean(self.input, INPUTS)}"
            )
        if self.takes_pixels and self.normalization is None:
            raise ValueError(
                f"input={self.input!r} needs a normalization, mean and deviation of "
                "each channel; without one take input='normalized'"
            )
        normalization = self.normalization
        if normalization and normalization.channels != model.in_channels:
            raise ValueError(
                f"expected {model.in_channels} values of mean and of std, one a "
                f"channel, got {normalization.channels}"
            )
        if self.class_names is not None and len(self.class_names) != model.num_classes:
            raise ValueError(
                f"expected the names of {model.num_classes} classes, got "
                f"{len(self.class_names)}"
            )

    @property
    def takes_pixels(self) -> bool:
        """Whether the normalization is inside."""
        return self.input != "normalized"

    @property
    def rows(self) -> tuple[Layer, ...]:
        """The rows of the network as far as the output needs them."""
        if self.output in OUTPUTS:
            return self.model.layers
        names = [row.name for row in self.model.layers]
        return self.model.layers[: names.index(self.output) + 1]

    @property
    def smallest_image(self) -> int:
        """The smallest height and width that the rows take, in pixels."""
        return smallest_size(self.rows)

    def weights(self) -> dict[str, np.ndarray]:
        """Returns the arrays of the rows in float32, by names such as conv1_1.kernel.

        They have this library's axes: a kernel is [h, w, in, out].
        """
        names = {row.name for row in self.rows}
        state = nnx.state(self.model, (nnx.Param, nnx.BatchStat))
        return {
            ".".join(map(str, path)): np.asarray(variable.get_value(), np.float32)
            for path, variable in nnx.to_flat_state(state)
            if path[0] in names
        }

    def metadata(self) -> dict[str, Any]:
        """Returns what is known of the network and of its input, as values of JSON."""
        normalization = self.normalization
        return {
            **self.facts,
            "input": self.input,
            "output": self.output,
            "channels": "RGB" if self.model.in_channels == 3 else "gray",
            "smallest_image": self.smallest_image,
            "normalization": normalization and dataclasses.asdict(normalization),
            "class_names": self.class_names and list(self.class_names),
            "vgg_jax": __version__,
            "jax": jax.__version__,
        }

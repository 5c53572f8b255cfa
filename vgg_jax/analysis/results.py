"""What a network measures for one image: its layers, their totals, the table."""

import dataclasses
from typing import Any

from vgg_jax.console import format_columns

PARAMETER_BYTES = 4  # parameters are float32 whatever the dtype of the computation
MEBIBYTE = 2**20
TOTALS = (
    "weights",
    "biases",
    "parameters",
    "parameter_bytes",
    "activations",
    "activation_bytes",
    "multiply_adds",
)


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer seen from the image: sizes in pixels, costs of one forward pass.

    Cell i of the output sees `receptive_field` pixels from start + i * jump on, along
    either side; those outside the image are padding.
    """

    layer: str
    kernel: int  # 1 for a layer that works on each cell alone
    stride: int
    jump: int  # pixels between neighboring cells
    receptive_field: int
    start: int  # first pixel that cell 0 sees, negative in the padding
    output: tuple[int, int, int]  # height, width, channels
    weights: int  # of a convolution; of a batch norm, its scales
    biases: int
    activations: int  # numbers the layer adds to memory; 0 where it works in place
    activation_bytes: int
    multiply_adds: int  # of convolutions; products with padding count

    @property
    def parameters(self) -> int:
        """Weights and biases; a batch norm's running statistics are none."""
        return self.weights + self.biases


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a network for one image, and their totals; prints as a table.

    Activations are the maps of convolutions, pools and local response norms. ReLU,
    dropout and batch norm change a map in place (training keeps a batch norm's input
    too), and the image is not counted. VGG-16 at 224x224 has 15.1 million, 57.6 MiB in
    float32; the 24 million and 93 MB often quoted for it come from a sum in thousands
    that takes the 4096, 4096 and 1000 units of fc6, fc7 and fc8 for thousands too.
    """

    network: str
    image: tuple[int, int, int]  # height, width, channels
    dtype: str  # of the activations
    layers: tuple[LayerSummary, ...]

    @property
    def weights(self) -> int:
        """Of convolutions, and scales of batch norms."""
        return sum(layer.weights for layer in self.layers)

    @property
    def biases(self) -> int:
        """Of convolutions and batch norms."""
        return sum(layer.biases for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases

    @property
    def parameter_bytes(self) -> int:
        """In float32, as the parameters are kept."""
        return PARAMETER_BYTES * self.parameters

    @property
    def activations(self) -> int:
        """Numbers that one image adds to memory."""
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """The same, in `dtype`."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Of one image's forward pass."""
        return sum(layer.multiply_adds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON can hold it: the fields, and a "total" of the layers."""
        layers = [
            dataclasses.asdict(layer) | {"parameters": layer.parameters}
            for layer in self.layers
        ]
        total = {name: getattr(self, name) for name in TOTALS}
        return dataclasses.asdict(self) | {"layers": layers, "total": total}

    def __str__(self) -> str:
        """A table 100 columns wide, without ReLU and dropout, which cost nothing."""
        cells = [
            [
                layer.layer,
                f"{layer.kernel}x{layer.kernel}",
                str(layer.stride),
                str(layer.jump),
                str(layer.receptive_field),
                "x".join(map(str, layer.output)),
                *_costs(layer),
            ]
            for layer in self.layers
            if layer.parameters or layer.activations
        ]
        where = ["layer", "kernel", "stride", "jump", "field", "output"]
        table = format_columns(
            [*where, "parameters", "activations", "MiB", "multiply-adds"],
            cells,
            total=["total", *[""] * (len(where) - 1), *_costs(self)],
        )
        height, width, channels = self.image
        return (
            f"{self.network}, one image of {height}x{width}x{channels}, "
            f"activations in {self.dtype}\n\n{table}\n\n"
            f"Parameters: {self.weights:,} weights and {self.biases:,} biases, "
            f"{self.parameter_bytes / MEBIBYTE:,.1f} MiB in float32.\n"
            "ReLU, dropout and batch norm work in place; the image is not counted."
        )


def _costs(measured: LayerSummary | Summary) -> list[str]:
    return [
        f"{measured.parameters:,}",
        f"{measured.activations:,}",
        f"{measured.activation_bytes / MEBIBYTE:.2f}",
        f"{measured.multiply_adds:,}",
    ]

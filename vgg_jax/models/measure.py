"""This module measures receptive fields, sizes and costs of layers."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from vgg_jax.console import format_columns
from vgg_jax.models import ConvNet, create_model
from vgg_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    LocalResponseNorm,
    Pool,
    Relu,
    channels_after,
    check_size,
    receptive_fields,
    window,
)

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

Network = str | ConvNet | Sequence[Layer]
ImageSize = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """The sizes of one layer in pixels, and its costs in one forward pass.

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
        """The number of weights and biases; running statistics do not count."""
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
        """The number of weights of convolutions and scales of batch norms."""
        return sum(layer.weights for layer in self.layers)

    @property
    def biases(self) -> int:
        """The number of biases of convolutions and batch norms."""
        return sum(layer.biases for layer in self.layers)

    @property
    def parameters(self) -> int:
        """The number of weights and biases of all layers."""
        return self.weights + self.biases

    @property
    def parameter_bytes(self) -> int:
        """The bytes of all parameters in float32, as they are kept."""
        return PARAMETER_BYTES * self.parameters

    @property
    def activations(self) -> int:
        """The count of numbers that one image adds to memory."""
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """The bytes of the activations of one image in `dtype`."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of the forward pass of one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON can hold them, and a "total" of the layers."""
        layers = [
            dataclasses.asdict(layer) | {"parameters": layer.parameters}
            for layer in self.layers
        ]
        total = {name: getattr(self, name) for name in TOTALS}
        return dataclasses.asdict(self) | {"layers": layers, "total": total}

    def __str__(self) -> str:
        """Returns a table of the layers that cost anything, 100 columns wide."""
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


def receptive_field(
    network: Network, image_size: ImageSize = 224, **options: Any
) -> tuple[LayerSummary, ...]:
    """Returns what each layer sees and costs, input first: the layers of `summary`.

    Kernel, stride, jump and receptive field are the same at every image size. Arguments
    and errors are those of `summary`.
    """
    return summary(network, image_size, **options).layers


def summary(network: Network, image_size: ImageSize = 224, **options: Any) -> Summary:
    """Measures sizes and costs of a network for one image; makes no weights.

    Args:
        network: a name, a key of `vgg_jax.MODELS`; or a model; or rows of layers.
        image_size: the side in pixels, or (height, width).
        **options: for a name, keywords of `create_model`: num_classes, in_channels,
            width, head, dtype ...; for rows, in_channels (3) and dtype ("float32").

    Raises:
        ValueError: an unknown name or option, or an image too small for the network.
    """
    model = _without_arrays(network, options)
    layers = tuple(model.layers)
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,) * 2
    if len(sides) != 2:
        raise ValueError(
            f"expected image_size as a side or (height, width), got {sides}"
        )
    height, width = sides
    check_size(layers, height, width)
    measured = _measure(layers, height, width, model.in_channels, model.dtype.itemsize)
    return Summary(
        network=network if isinstance(network, str) else type(model).__name__,
        image=(height, width, model.in_channels),
        dtype=model.dtype.name,
        layers=tuple(measured),
    )


def _without_arrays(network: Network, options: dict[str, Any]) -> ConvNet:
    """Returns the model to measure; its parameters are shapes only."""
    if isinstance(network, ConvNet):
        if options:
            raise ValueError(
                f"a model has its options already, got {', '.join(options)}; "
                "leave them out, or pass the model's name"
            )
        return network
    if isinstance(network, str):
        return nnx.eval_shape(
            lambda: create_model(network, rngs=nnx.Rngs(0), **options)
        )
    for option in options:
        if option not in ("in_channels", "dtype"):
            raise ValueError(
                f"rows of layers take in_channels and dtype, got {option}; "
                "other options belong to a model's name"
            )
    return nnx.eval_shape(lambda: ConvNet(network, rngs=nnx.Rngs(0), **options))


def _measure(
    layers: Sequence[Layer], height: int, width: int, channels: int, itemsize: int
) -> Iterator[LayerSummary]:
    """Yields the summary of each layer, from the image up."""
    for layer, field in zip(layers, receptive_fields(layers), strict=True):
        kernel, stride, _ = window(layer)
        height, width = layer.output_size(height), layer.output_size(width)
        inputs, channels = channels, channels_after(layer, channels)
        weights = biases = multiply_adds = 0
        match layer:
            case Conv():
                weights = kernel * kernel * inputs * channels
                biases = channels
                multiply_adds = height * width * weights
            case BatchNorm():
                weights = biases = channels
        activations = 0 if _is_in_place(layer) else height * width * channels
        yield LayerSummary(
            layer=layer.name,
            kernel=kernel,
            stride=stride,
            jump=field.stride,
            receptive_field=field.size,
            start=field.start,
            output=(height, width, channels),
            weights=weights,
            biases=biases,
            activations=activations,
            activation_bytes=activations * itemsize,
            multiply_adds=multiply_adds,
        )


def _is_in_place(layer: Layer) -> bool:
    """Returns whether a layer's map replaces its input in memory."""
    match layer:
        case Conv() | Pool() | LocalResponseNorm():
            return False
        case BatchNorm() | Relu() | Dropout():
            return True
        case _:
            raise TypeError(f"no rule to measure {layer}")

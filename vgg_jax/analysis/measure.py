"""Receptive fields, sizes and costs of a network, layer by layer, for one image."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from vgg_jax.analysis.columns import format_columns
from vgg_jax.models import ConvNet, create_model
from vgg_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    LocalResponseNorm,
    Pool,
    Relu,
    output_size,
)

Network = str | ConvNet | Sequence[Layer]

PARAMETER_BYTES = 4  # parameters are float32 whatever the dtype of the computation
MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer, seen from the image: sizes in pixels, costs of one image's forward pass.

    Cell i of the output sees the pixels start + i * jump up to, not including,
    start + i * jump + receptive_field, along either side; pixels outside the image are
    padding.
    """

    layer: str
    kernel: int  # 1 for what works on each cell alone
    stride: int
    jump: int  # pixels between neighbouring cells
    receptive_field: int  # pixels a cell sees, along either side
    start: int  # first pixel that cell 0 sees; negative in the padding
    output: tuple[int, int, int]  # height, width, channels
    weights: int  # of a convolution, or a batch norm's scales
    biases: int
    activations: int  # numbers the layer adds to memory; 0 where it works in place
    activation_bytes: int
    multiply_adds: int  # of convolutions, products with padding included

    @property
    def parameters(self) -> int:
        """Weights and biases; a batch norm's running statistics are not parameters."""
        return self.weights + self.biases


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a network for one image size, and their totals; prints as a table.

    Activations are the maps of convolutions, pools and local response norms. ReLU,
    dropout and batch norm change a map in place (training keeps a batch norm's input
    too), and the image itself is not counted. VGG-16 at 224x224 has 15.1 million, 57.6 MiB
    in float32; the 24 million and 93 MB often quoted for it add up a table in thousands
    in which the units of fc6, fc7 and fc8 stand as they are.
    """

    network: str
    image: tuple[int, int, int]  # height, width, channels
    dtype: str  # of the activations
    layers: tuple[LayerSummary, ...]

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def biases(self) -> int:
        return sum(layer.biases for layer in self.layers)

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def parameter_bytes(self) -> int:
        return PARAMETER_BYTES * self.parameters

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON can hold it, the totals beside the layers."""
        totals = (
            "weights biases parameters parameter_bytes "
            "activations activation_bytes multiply_adds"
        )
        return dataclasses.asdict(self) | {
            "layers": [
                dataclasses.asdict(layer) | {"parameters": layer.parameters}
                for layer in self.layers
            ],
            "total": {name: getattr(self, name) for name in totals.split()},
        }

    def __str__(self) -> str:
        return format_summary(self)


def receptive_field(
    network: Network, image_size: int | tuple[int, int] = 224, **options: Any
) -> tuple[LayerSummary, ...]:
    """What each layer sees and costs, input first: the layers of `summary`.

    Kernel, stride, jump and receptive field are the same at every image size.
    """
    return summary(network, image_size, **options).layers


def summary(
    network: Network, image_size: int | tuple[int, int] = 224, **options: Any
) -> Summary:
    """Sizes and costs of a network for one image.

    Args:
        network: a name, a key of `vgg_jax.MODELS`; a model; or rows of layers.
        image_size: the side in pixels, or (height, width).
        **options: for a name, keywords of `create_model`: num_classes, in_channels,
            width, head, dtype ...; for rows, in_channels (3) and dtype ("float32").

    Raises:
        ValueError: an unknown name or option, or an image too small for the network.
    """
    model = _abstract_model(network, options)
    layers = tuple(model.layers)
    height, width = (
        image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    )
    if any(output_size(layers, side) < 1 for side in (height, width)):
        needed = next(n for n in itertools.count(1) if output_size(layers, n))
        raise ValueError(
            f"expected images of at least {needed}x{needed} pixels, got "
            f"{height}x{width}; ask for a larger size, or a VGG for small images: "
            "fc_kernel=1 or head='global_pool' takes 32x32, with ceil_mode=True 28x28"
        )
    return Summary(
        network=network if isinstance(network, str) else type(model).__name__,
        image=(height, width, model.in_channels),
        dtype=model.dtype.name,
        layers=tuple(
            _measure(layers, height, width, model.in_channels, model.dtype.itemsize)
        ),
    )


def format_summary(summary: Summary) -> str:
    """A table of at most 100 columns, without the layers that work in place for nothing."""
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
        for layer in summary.layers
        if layer.parameters or layer.activations
    ]
    table = format_columns(
        [
            "layer",
            "kernel",
            "stride",
            "jump",
            "field",
            "output",
            "parameters",
            "activations",
            "MiB",
            "multiply-adds",
        ],
        cells,
        total=["total", "", "", "", "", "", *_costs(summary)],
    )
    height, width, channels = summary.image
    return (
        f"{summary.network}, one image of {height}x{width}x{channels}, "
        f"activations in {summary.dtype}\n\n{table}\n\n"
        f"Parameters: {summary.weights:,} weights and {summary.biases:,} biases, "
        f"{summary.parameter_bytes / MEBIBYTE:,.1f} MiB in float32.\n"
        "ReLU, dropout and batch norm work in place; the image is not counted."
    )


def _costs(measured: LayerSummary | Summary) -> list[str]:
    return [
        f"{measured.parameters:,}",
        f"{measured.activations:,}",
        f"{measured.activation_bytes / MEBIBYTE:.2f}",
        f"{measured.multiply_adds:,}",
    ]


def _abstract_model(network: Network, options: dict[str, Any]) -> ConvNet:
    """The network without arrays."""
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
    keywords = {"num_classes": None, "in_channels": 3, "init": "glorot"}
    keywords |= {"dtype": "float32"} | options
    return nnx.eval_shape(lambda: ConvNet(network, **keywords, rngs=nnx.Rngs(0)))


def _measure(
    layers: Sequence[Layer], height: int, width: int, channels: int, itemsize: int
) -> Iterator[LayerSummary]:
    """One summary a layer, from the image up."""
    field, jump, start = 1, 1, 0
    for layer in layers:
        kernel, stride, padding, in_place = _window(layer)
        field += (kernel - 1) * jump
        start -= padding * jump
        jump *= stride
        height, width = layer.output_size(height), layer.output_size(width)
        weights = biases = multiply_adds = 0
        match layer:
            case Conv():
                weights = kernel * kernel * channels * layer.features
                biases = channels = layer.features
                multiply_adds = height * width * weights
            case BatchNorm():
                weights = biases = channels
        activations = 0 if in_place else height * width * channels
        yield LayerSummary(
            layer=layer.name,
            kernel=kernel,
            stride=stride,
            jump=jump,
            receptive_field=field,
            start=start,
            output=(height, width, channels),
            weights=weights,
            biases=biases,
            activations=activations,
            activation_bytes=activations * itemsize,
            multiply_adds=multiply_adds,
        )


def _window(layer: Layer) -> tuple[int, int, int, bool]:
    """Kernel, stride and padding of a layer, and whether its output replaces its input."""
    match layer:
        case Conv():
            return layer.kernel, layer.stride, layer.padding, False
        case Pool():
            return layer.window, layer.stride, 0, False
        case LocalResponseNorm():
            return 1, 1, 0, False
        case BatchNorm() | Relu() | Dropout():
            return 1, 1, 0, True
        case _:
            raise TypeError(f"no rule to measure {layer}")

"""Receptive fields, sizes and costs of a network, from its rows of layers alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from vgg_jax.analysis.results import LayerSummary, Summary
from vgg_jax.models import ConvNet, create_model
from vgg_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    LocalResponseNorm,
    Pool,
    Relu,
    check_size,
)

Network = str | ConvNet | Sequence[Layer]
ImageSize = int | Sequence[int]


def receptive_field(
    network: Network, image_size: ImageSize = 224, **options: Any
) -> tuple[LayerSummary, ...]:
    """What each layer sees and costs, input first: the layers of `summary`.

    Kernel, stride, jump and receptive field are the same at every image size. Arguments
    and errors are those of `summary`.
    """
    return summary(network, image_size, **options).layers


def summary(network: Network, image_size: ImageSize = 224, **options: Any) -> Summary:
    """Sizes and costs of a network for one image; makes no weights.

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
    """The model whose layers are measured; its parameters are shapes only."""
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
    return nnx.eval_shape(
        lambda: ConvNet(
            network,
            num_classes=None,
            in_channels=options.get("in_channels", 3),
            init="glorot",
            dtype=options.get("dtype", "float32"),
            rngs=nnx.Rngs(0),
        )
    )


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
    """Kernel, stride and padding, and whether the output replaces the input."""
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

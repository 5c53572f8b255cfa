"""Times PyTorch for cpu.py and gpu.py: the same networks, written independently."""

import os
import platform
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.worker import Parts, Steps, main, timed

# How many convolutions each stage has; every stage ends in a max pool.
VGG = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2,) * 5,
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)


class GlobalMean(nn.Module):
    """A layer that averages over space."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Averages over space: [N, C, H, W] -> [N, C]."""
        return x.mean((2, 3))


def vgg(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    width: float,
    dropout: float,
    head: str,
    fc_features: int,
    fc_kernel: int,
    ceil_mode: bool,
    **others: object,
) -> nn.Sequential:
    """Makes a VGG as torchvision does, of the options of vgg_jax.config.VGGConfig.

    Its layers have torchvision's names. The `others` make no difference to its speed.
    """
    depth, _, norm = name.partition("_")
    layers: list[nn.Module] = []
    channels = in_channels
    for count, features in zip(VGG[depth], CHANNELS, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(channels, round(features * width), 3, padding=1))
            channels = round(features * width)
            if norm == "bn":
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil_mode))
    classifier: list[nn.Module] = []
    if head == "paper":
        hidden = round(fc_features * width)
        for inputs in (channels * fc_kernel**2, hidden):
            classifier += [
                nn.Linear(inputs, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            ]
        flat: nn.Module = nn.Flatten()
        classifier.append(nn.Linear(hidden, num_classes))
    else:
        flat = nn.Sequential(nn.Dropout(dropout), GlobalMean())
        classifier.append(nn.Linear(channels, num_classes))
    return _in_order(features=layers, flat=[flat], classifier=classifier)


def _in_order(**parts: list[nn.Module]) -> nn.Sequential:
    """Makes a network of its parts, whose names begin those of its layers."""
    sequences = {name: nn.Sequential(*layers) for name, layers in parts.items()}
    return nn.Sequential(OrderedDict(sequences))


def nin_tutorial(
    *, num_classes: int, in_channels: int, dropout: float, **_: object
) -> nn.Sequential:
    """Makes the tutorials' Network in Network."""
    layers: list[nn.Module] = []
    channels = in_channels
    for features, kernel, stride, padding in (
        (96, 11, 4, 0),
        (256, 5, 1, 2),
        (384, 3, 1, 1),
        (num_classes, 3, 1, 1),
    ):
        widths = (features, features, features)
        layers += _nin_block(channels, widths, kernel, stride, padding)
        layers.append(nn.MaxPool2d(3, 2))
        channels = features
    layers[-1] = GlobalMean()
    layers.insert(-7, nn.Dropout(dropout))
    return nn.Sequential(*layers)


def nin_imagenet(
    *, num_classes: int, in_channels: int, width: float, dropout: float, **_: object
) -> nn.Sequential:
    """Makes the Network in Network for ImageNet of the Caffe zoo."""
    layers: list[nn.Module] = []
    channels = in_channels
    for features, last, kernel, stride, padding in (
        (round(96 * width), None, 11, 4, 0),
        (round(256 * width), None, 5, 1, 2),
        (round(384 * width), None, 3, 1, 1),
        (round(1024 * width), num_classes, 3, 1, 1),
    ):
        widths = (features, features, features if last is None else last)
        layers += _nin_block(channels, widths, kernel, stride, padding)
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        channels = features
    del layers[-2:]  # neither a ReLU nor a pool follows the classes
    layers.insert(-5, nn.Dropout(dropout))
    return _in_order(features=layers, flat=[GlobalMean()])


def _nin_block(
    channels: int, widths: tuple[int, ...], kernel: int, stride: int, padding: int
) -> list[nn.Module]:
    """Makes a convolution and two of 1x1, each with a ReLU."""
    first, second, third = widths
    layers: list[nn.Module] = []
    for convolution in (
        nn.Conv2d(channels, first, kernel, stride, padding),
        nn.Conv2d(first, second, 1),
        nn.Conv2d(second, third, 1),
    ):
        layers += [convolution, nn.ReLU(inplace=True)]
    return layers


NIN = {"nin_tutorial": nin_tutorial, "nin_imagenet": nin_imagenet}


def make_network(options: dict[str, Any]) -> nn.Sequential:
    """Makes a network of the options of `VGGConfig` or `NiNConfig`."""
    name = options["name"]
    return NIN[name](**options) if name in NIN else vgg(**options)


def open_parts(
    options: dict[str, Any],
    side: int,
    batch_size: int,
    seconds: float,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    tf32: bool = True,
    compiled: bool = False,
    exchange: str = "",
) -> Parts:
    """Makes the parts of a network that are measured.

    Args:
        options: the fields of `VGGConfig` or `NiNConfig`.
        side, batch_size: of the images.
        seconds: how long a measurement takes.
        device: "cpu" or "cuda".
        dtype: "float32", or "bfloat16" by autocast.
        tf32: whether products of float32 numbers may be of their first 10 bits.
        compiled: whether torch.compile compiles the network and its loss.
        exchange: a file of weights, images and logits, which "logits" reads.
    """
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    run = _Run(options, side, batch_size, device, dtype)
    return {
        "parameters": lambda: run.count_parameters,
        "facts": lambda: facts,
        "train": lambda: timed(run.train(compiled), seconds),
        "train, eager": lambda: timed(run.train(False), seconds),
        "forward": lambda: timed(run.forward(compiled), seconds),
        "forward, eager": lambda: timed(run.forward(False), seconds),
        "logits": lambda: lambda: compare_logits(options, device, exchange),
    }


def facts() -> dict[str, str]:
    """Returns the versions of what the program runs on."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(cudnn),
    }


class _Run:
    """The steps of one network, whose arguments are those of `open_parts`."""

    def __init__(
        self,
        options: dict[str, Any],
        side: int,
        batch_size: int,
        device: str,
        dtype: str,
    ):
        self._device = device
        self._cast = torch.autocast(
            device, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=True
        )
        self._network = make_network(options).to(
            device, memory_format=torch.channels_last
        )
        shape = (batch_size, options["in_channels"], side, side)
        self._images = torch.randn(shape, device=device).to(
            memory_format=torch.channels_last
        )
        self._labels = torch.randint(options["num_classes"], shape[:1], device=device)

    def count_parameters(self) -> int:
        """Returns the number of the network's parameters."""
        return sum(p.numel() for p in self._network.parameters())

    def train(self, is_compiled: bool) -> Steps:
        """Makes a function that takes so many training steps."""
        self._free_memory()
        network, images, labels = self._network, self._images, self._labels
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
        )

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(network(images), labels)

        if is_compiled:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)

        def take(count: int) -> None:
            network.train()
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                with self._cast:
                    value = loss(images, labels)
                value.backward()
                optimizer.step()
            self._wait()

        return take

    def forward(self, is_compiled: bool) -> Steps:
        """Makes a function that computes the logits of so many batches."""
        self._free_memory()
        network, images = self._network, self._images
        forward = network
        if is_compiled:
            forward = torch.compile(network, fullgraph=True, dynamic=False)

        def take(count: int) -> None:
            network.eval()
            with torch.inference_mode(), self._cast:
                for _ in range(count):
                    forward(images)
            self._wait()

        return take

    def _free_memory(self) -> None:
        """Gives back what a part before left."""
        self._network.zero_grad(set_to_none=True)
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def compare_logits(options: dict[str, Any], device: str, exchange: str) -> float:
    """Returns the largest difference of logits from those in a file.

    They are of its weights and its images, and computed in float32 throughout.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with np.load(exchange) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    images, expected = arrays.pop("images"), arrays.pop("logits")
    network = make_network(options).eval()
    network.load_state_dict(arrays)
    network = network.to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = network(images.to(device, memory_format=torch.channels_last))
    return float((logits.cpu() - expected).abs().max())


if __name__ == "__main__":
    main(open_parts)

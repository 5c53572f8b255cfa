"""Times PyTorch for cpu.py: the same networks, written independently."""

import json
import os
import sys
from typing import Any

import torch
from torch import nn

from benchmarks.worker import serve

# How many convolutions each stage has; every stage ends in a max pool.
VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3)}
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

    The `others` make no difference to its speed.
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
    if head == "paper":
        hidden = round(fc_features * width)
        layers.append(nn.Flatten())
        for inputs in (channels * fc_kernel**2, hidden):
            layers += [
                nn.Linear(inputs, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            ]
        layers.append(nn.Linear(hidden, num_classes))
    else:
        layers += [nn.Dropout(dropout), GlobalMean(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)


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
        for convolution in (
            nn.Conv2d(channels, features, kernel, stride, padding),
            nn.Conv2d(features, features, 1),
            nn.Conv2d(features, features, 1),
        ):
            layers += [convolution, nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(3, 2))
        channels = features
    layers[-1] = GlobalMean()
    layers.insert(-7, nn.Dropout(dropout))
    return nn.Sequential(*layers)


def main(options: dict[str, Any], side: int, batch_size: int, seconds: float) -> None:
    """Answers requests for the times of a network's steps."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    name = options.pop("name")
    if name == "nin_tutorial":
        network = nin_tutorial(**options)
    else:
        network = vgg(name, **options)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    shape = (batch_size, options["in_channels"], side, side)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(options["num_classes"], shape[:1])

    def forward(count: int) -> None:
        network.eval()
        with torch.inference_mode():
            for _ in range(count):
                network(images)

    def train(count: int) -> None:
        network.train()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    parameters = sum(p.numel() for p in network.parameters())
    serve(parameters, {"forward": forward, "train": train}, seconds)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

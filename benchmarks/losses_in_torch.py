"""Times the `lpips` package for losses.py; its speed needs no trained weights."""

import os

import lpips
import torch

from benchmarks.worker import Parts, main, timed


def open_parts(size: int, batch_size: int, width: float, seconds: float) -> Parts:
    """Makes the parts of LPIPS that are timed."""
    assert width == 1, "the package has VGG-16 in its own width only"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loss = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    loss = loss.requires_grad_(False).to(memory_format=torch.channels_last)
    x, y = (
        (2 * torch.rand(batch_size, 3, size, size) - 1).to(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )

    def forward(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                loss(x, y)

    def gradient(count: int) -> None:
        for _ in range(count):
            image = x.detach().requires_grad_()
            loss(image, y).mean().backward()

    parameters = sum(p.numel() for p in loss.net.parameters())
    parameters += sum(p.numel() for head in loss.lins for p in head.parameters())
    return {
        "parameters": lambda: lambda: parameters,
        "forward": lambda: timed(forward, seconds),
        "gradient": lambda: timed(gradient, seconds),
        "cached": lambda: timed(gradient, seconds),
    }


if __name__ == "__main__":
    main(open_parts)

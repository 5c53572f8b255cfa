"""Lists what is measured: a network, an image side and a batch size each."""

import dataclasses

import numpy as np

from configs.fashion_mnist_vgg import get_config as fashion_mnist_vgg
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    NiNConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.data.transforms import rescaled_shape
from vgg_jax.inference.dense import (
    Shape,
    images_per_device,
    padded_shapes,
    smallest_fitting,
)
from vgg_jax.training.program import Program


def make_case(model: VGGConfig | NiNConfig, side: int, batch_size: int) -> Config:
    """Makes a configuration whose data are never read."""
    return Config(
        model=model,
        data=DataConfig(
            dataset="folder",
            crop=side,
            scale_min=side,
            scale_max=side,
            mean=(128.0,) * model.in_channels,
            std=(64.0,) * model.in_channels,
            color_shift=0.0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        evaluation=EvaluationConfig(center_scale=side, scales=(side,)),
        batch_size=batch_size,
    )


def small_vgg13(width: float) -> VGGConfig:
    """Returns Table 1, B for images of 32x32, with `width` times the channels."""
    return VGGConfig(name="vgg13", width=width, num_classes=10, fc_kernel=1)


def random_batch(program: Program) -> dict[str, np.ndarray]:
    """Makes a batch of noise for a program's training step."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, program.batch["image"].shape, np.uint8),
        "label": rng.integers(0, 10, program.batch["label"].shape, np.int32),
        "weight": np.ones(program.batch["weight"].shape, np.float32),
    }


# Heights and widths of most photographs, in pixels, as in ImageNet.
PHOTOGRAPHS = ((375, 500), (500, 375), (333, 500))


@dataclasses.dataclass(frozen=True)
class DenseBatch:
    """A batch of whole images of one size.

    Args:
        count: the number of images.
        size: their height and width, in pixels.
        padded: the height and width that they are padded to.
    """

    count: int
    size: Shape
    padded: Shape


def dense_batches(config: Config, scale: int) -> list[DenseBatch]:
    """Returns the batches of the dense evaluation of photographs at a scale Q.

    There is one of each shape of `PHOTOGRAPHS`, as full as eval.py makes it on one
    device.
    """
    batches = []
    for photograph in PHOTOGRAPHS:
        size = rescaled_shape(photograph, scale)
        shapes = padded_shapes(config.evaluation.bucket_ratios, scale)
        padded = smallest_fitting(shapes, *size)
        assert padded is not None
        batches.append(DenseBatch(images_per_device(config, 1, padded), size, padded))
    return batches


CASES = {
    "fashion_mnist_vgg": fashion_mnist_vgg(),
    "vgg13_quarter": make_case(small_vgg13(0.25), 32, 128),
    "vgg13_half": make_case(small_vgg13(0.5), 32, 128),
    "nin_tutorial": make_case(
        NiNConfig(name="nin_tutorial", num_classes=10, in_channels=1), 224, 16
    ),
    "vgg16_batch4": make_case(VGGConfig(name="vgg16"), 224, 4),
    "vgg16_batch16": make_case(VGGConfig(name="vgg16"), 224, 16),
}

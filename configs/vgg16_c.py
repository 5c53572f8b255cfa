"""Trains VGG-16 with 1x1 convolutions, configuration C, on ImageNet at S = 256.

  python train.py --config configs/vgg16_c.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg16_c")

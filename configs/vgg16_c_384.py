"""Trains VGG-16 with 1x1 convolutions, configuration C, on ImageNet at S = 384.

  python train.py --config configs/vgg16_c_384.py

Starts from the run of configs/vgg16_c.py. Not run.
"""

from configs.imagenet import at_384
from vgg_jax.config import Config


def get_config() -> Config:
    return at_384("vgg16_c")

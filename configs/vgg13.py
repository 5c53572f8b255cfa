"""Trains VGG-13, configuration B, on ImageNet at S = 256.

  python train.py --config configs/vgg13.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg13")

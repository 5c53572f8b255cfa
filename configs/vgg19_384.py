"""Trains VGG-19, configuration E, on ImageNet at S = 384.

  python train.py --config configs/vgg19_384.py

Starts from the run of configs/vgg19.py. Not run.
"""

from configs.imagenet import at_384
from vgg_jax.config import Config


def get_config() -> Config:
    return at_384("vgg19")

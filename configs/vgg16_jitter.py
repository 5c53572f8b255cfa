"""Trains VGG-16, configuration D, on ImageNet at S from 256 to 512.

  python train.py --config configs/vgg16_jitter.py

Starts from the run of configs/vgg16_384.py. Not run.
"""

from configs.imagenet import jittered
from vgg_jax.config import Config


def get_config() -> Config:
    return jittered("vgg16")

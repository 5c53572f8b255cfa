"""Trains VGG-19, configuration E, on ImageNet at S from 256 to 512.

  python train.py --config configs/vgg19_jitter.py

Starts from the run of configs/vgg19_384.py. Not run.
"""

from configs.imagenet import jittered
from vgg_jax.config import Config


def get_config() -> Config:
    return jittered("vgg19")

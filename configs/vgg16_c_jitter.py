"""Trains VGG-16 with 1x1 convolutions, configuration C, on ImageNet, S in [256, 512].

  python train.py --config configs/vgg16_c_jitter.py

Starts from the run of configs/vgg16_c_384.py. Not run.
"""

from configs.imagenet import jittered
from vgg_jax.config import Config


def get_config() -> Config:
    return jittered("vgg16_c")

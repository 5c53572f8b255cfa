"""Trains VGG-11, configuration A, on ImageNet at S = 256.

  python train.py --config configs/vgg11.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg11")

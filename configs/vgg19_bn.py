"""Trains VGG-19 with batch normalization (not in the paper) on ImageNet at S = 256.

  python train.py --config configs/vgg19_bn.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg19_bn")

"""Trains VGG-11 with batch normalization (not in the paper) on ImageNet at S = 256.

  python train.py --config configs/vgg11_bn.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg11_bn")

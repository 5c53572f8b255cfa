"""VGG-16 with batch normalization, which the paper has not, on ImageNet at S = 256.

  python train.py --config configs/vgg16_bn.py

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config


def get_config() -> Config:
    return imagenet("vgg16_bn")

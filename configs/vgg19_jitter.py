"""VGG-19, configuration E, at S from [256, 512], from S = 384.

  python train.py --config configs/vgg19_jitter.py

Section 3.1 of arXiv:1409.1556; it states no rate, so that of S = 384 stays.
"""

from configs import vgg19_384
from vgg_jax.config import Config


def get_config() -> Config:
    config = vgg19_384.get_config()
    config.init_from = "vgg19_384"
    config.data.scale_min, config.data.scale_max = 256, 512
    config.evaluation.scales = (256, 384, 512)  # Q = Smin, their mean, Smax
    return config

"""VGG-16, configuration D, at S = 384 from S = 256.

  python train.py --config configs/vgg16_384.py

Section 3.1 of arXiv:1409.1556: "a smaller initial learning rate of 10^-3".
"""

from configs import vgg16
from vgg_jax.config import Config


def get_config() -> Config:
    config = vgg16.get_config()
    config.init_from = "vgg16"
    config.optimizer.learning_rate = 1e-3
    config.data.scale_min = config.data.scale_max = 384
    config.evaluation.center_scale = 384
    config.evaluation.scales = (352, 384, 416)  # Q = S - 32, S, S + 32
    return config

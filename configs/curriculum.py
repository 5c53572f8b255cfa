"""The ladder of section 3.1 of arXiv:1409.1556: A, then B, C, D and E from it.

  python train.py --config configs/curriculum.py

Eleven runs in runs/curriculum: all that tables 3 and 4 have but A-LRN, which is
configs/vgg11_lrn.py. Stopped, the same command goes on. --config.X=Y holds for every
run where all agree on X, such as --config.data.data_dir and --config.batch_size.
"""

from configs import (
    vgg11,
    vgg13,
    vgg16,
    vgg16_384,
    vgg16_c,
    vgg16_c_384,
    vgg16_c_jitter,
    vgg16_jitter,
    vgg19,
    vgg19_384,
    vgg19_jitter,
)
from vgg_jax.config import Config, Curriculum


def get_config() -> Curriculum:
    return Curriculum(
        runs={
            "vgg11": vgg11.get_config(),
            "vgg13": from_a(vgg13.get_config()),
            "vgg16_c": from_a(vgg16_c.get_config()),
            "vgg16_c_384": vgg16_c_384.get_config(),
            "vgg16_c_jitter": vgg16_c_jitter.get_config(),
            "vgg16": from_a(vgg16.get_config()),
            "vgg16_384": vgg16_384.get_config(),
            "vgg16_jitter": vgg16_jitter.get_config(),
            "vgg19": from_a(vgg19.get_config()),
            "vgg19_384": vgg19_384.get_config(),
            "vgg19_jitter": vgg19_jitter.get_config(),
        }
    )


def from_a(config: Config) -> Config:
    """Four convolutions and the fully-connected layers from A, at the full rate."""
    config.init_from = "vgg11"
    return config

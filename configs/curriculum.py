"""This curriculum trains A, then B, C, D and E from it (arXiv:1409.1556, 3.1).

  python train.py --config configs/curriculum.py

Eleven runs in runs/curriculum: all that tables 3 and 4 have but A-LRN, which is
configs/vgg11_lrn.py. Stopped, the same command goes on. --config.NAME=VALUE holds for
every run where all agree on a setting, such as --config.data.data_dir. Not run on
ImageNet; the same order on small data is tested in tests/training/test_init_from.py.
"""

from configs.imagenet import at_384, imagenet, jittered
from vgg_jax.config import Config, Curriculum


def get_config() -> Curriculum:
    runs = {"vgg11": imagenet("vgg11"), "vgg13": from_a("vgg13")}
    for name in ("vgg16_c", "vgg16", "vgg19"):
        runs[name] = from_a(name)
        runs[f"{name}_384"] = at_384(name)
        runs[f"{name}_jitter"] = jittered(name)
    return Curriculum(runs=runs)


def from_a(name: str) -> Config:
    """Starts four convolutions and the fully-connected layers from A, at full rate."""
    config = imagenet(name)
    config.init_from = "vgg11"
    return config

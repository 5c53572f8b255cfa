"""These functions give the recipe of arXiv:1409.1556, section 3.1, on ImageNet.

Files such as configs/vgg16.py are a line on top of it. None of them was run: no network
has been trained on ImageNet here yet.
"""

from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig


def imagenet(name: str) -> Config:
    """Trains a network of Table 1 at S = 256: the defaults of vgg_jax.config.

    On TPU it computes in bfloat16, and the chips share fc6 to fc8 out.
    """
    return Config(
        model=VGGConfig(name=name, dtype=None),
        data=DataConfig(dataset="imagenet2012", color_shift=0.1, num_workers=8),
        evaluation=EvaluationConfig(scales=(224, 256, 288)),  # Q = S - 32, S, S + 32
        shard_fc=None,
    )


def at_384(name: str) -> Config:
    """Trains the network at S = 384, from its weights at S = 256.

    The paper has "a smaller initial learning rate of 10^-3" there.
    """
    config = imagenet(name)
    config.init_from = name
    config.optimizer.learning_rate = 1e-3
    config.data.scale_min = config.data.scale_max = 384
    config.evaluation.center_scale = 384
    config.evaluation.scales = (352, 384, 416)  # Q = S - 32, S, S + 32
    return config


def jittered(name: str) -> Config:
    """Trains the network at S from [256, 512], from its weights at S = 384.

    The paper states no rate, so that of S = 384 stays.
    """
    config = at_384(name)
    config.init_from = f"{name}_384"
    config.data.scale_min, config.data.scale_max = 256, 512
    config.evaluation.scales = (256, 384, 512)  # Q = Smin, their mean, Smax
    return config

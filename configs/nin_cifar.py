"""The CIFAR Network in Network on ImageNet rescaled to 36 pixels, crops of 32.

  python train.py --config configs/nin_cifar.py

Not run.
"""

from vgg_jax.config import Config, DataConfig, EvaluationConfig, NiNConfig


def get_config() -> Config:
    return Config(
        model=NiNConfig(name="nin_cifar"),
        data=DataConfig(
            dataset="imagenet2012", crop=32, scale_min=36, scale_max=36, num_workers=8
        ),
        evaluation=EvaluationConfig(
            center_scale=36, scales=(32, 36, 40), batch_size=256
        ),
        batch_size=128,
    )

"""VGG-13 with batch normalization, which is not in the paper, on ImageNet at S = 256.

Section 3.1 of arXiv:1409.1556.

python train.py --config configs/vgg13_bn.py
"""

from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig


def get_config() -> Config:
    return Config(
        model=VGGConfig(name="vgg13_bn"),
        data=DataConfig(dataset="imagenet2012", color_shift=0.1, num_workers=8),
        # Q = S, and S - 32, S, S + 32 together.
        evaluation=EvaluationConfig(scales=(224, 256, 288)),
    )

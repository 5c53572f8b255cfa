"""VGG-11 with local response normalization, A-LRN, on ImageNet at S = 256.

Section 3.1 of arXiv:1409.1556.

python train.py --config configs/vgg11_lrn.py
"""

from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig


def get_config() -> Config:
    return Config(
        model=VGGConfig(name="vgg11_lrn"),
        data=DataConfig(dataset="imagenet2012", color_shift=0.1, num_workers=8),
        # Q = S, and S - 32, S, S + 32 together.
        evaluation=EvaluationConfig(scales=(224, 256, 288)),
    )

"""Trains the Caffe zoo's Network in Network on ImageNet by its recipe.

  python train.py --config configs/nin_imagenet.py

Batch 64 and rate 0.01 are its solver's; 450K iterations are 22.5 epochs. Not run.
"""

from vgg_jax.config import Config, DataConfig, EvaluationConfig, NiNConfig


def get_config() -> Config:
    return Config(
        model=NiNConfig(name="nin_imagenet", dtype=None),  # bfloat16 on TPU
        data=DataConfig(dataset="imagenet2012", num_workers=8),
        evaluation=EvaluationConfig(scales=(224, 256, 288)),
        batch_size=64,
        num_epochs=22.5,
    )

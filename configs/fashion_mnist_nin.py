"""A small Network in Network on Fashion-MNIST, for two CPU cores.

python train.py --config configs/fashion_mnist_nin.py
"""

from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    NiNConfig,
    OptimizerConfig,
)


def get_config() -> Config:
    return Config(
        model=NiNConfig(
            name="nin_cifar", num_classes=10, in_channels=1, width=0.25, init="he"
        ),
        data=DataConfig(
            dataset="fashion_mnist",
            crop=28,
            scale_min=28,
            scale_max=34,
            mean=(72.94,),
            std=(90.02,),
            validation_fraction=1 / 12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.05, plateau_patience=2, metric="top1_error"
        ),
        evaluation=EvaluationConfig(
            center_scale=30, scales=(28, 32, 36), batch_size=500
        ),
        batch_size=128,
        num_epochs=12,
        log_every_steps=50,
    )

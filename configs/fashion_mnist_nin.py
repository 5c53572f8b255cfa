"""Trains a small Network in Network on Fashion-MNIST on two CPU cores.

  python train.py --config configs/fashion_mnist_nin.py
  python eval.py --config configs/fashion_mnist_nin.py --protocol center

Two CPU cores, 12 epochs; the time was not noted. Top-1 error 10.81 ± 0.61% on the
center crop.
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
            name="nin_cifar",
            num_classes=10,
            in_channels=1,
            width=0.25,
            dropout=0.1,  # half of so narrow a network's maps would be too many to lose
            init="he",
        ),
        data=DataConfig(
            dataset="fashion_mnist",
            crop=28,
            scale_min=28,
            scale_max=30,
            mean=(72.94,),
            std=(90.02,),
            validation_fraction=1 / 12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.05, plateau_patience=3, metric="top1_error"
        ),
        evaluation=EvaluationConfig(
            center_scale=28, scales=(28, 29, 30), batch_size=500
        ),
        batch_size=128,
        num_epochs=12,
        validate_every_epochs=0.5,
        log_every_steps=50,
    )

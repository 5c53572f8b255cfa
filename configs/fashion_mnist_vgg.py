"""A small VGG on Fashion-MNIST, for two CPU cores.

python train.py --config configs/fashion_mnist_vgg.py
"""

from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    VGGConfig,
)


def get_config() -> Config:
    return Config(
        model=VGGConfig(
            name="vgg11_bn",
            num_classes=10,
            in_channels=1,
            width=0.25,
            head="global_pool",
            ceil_mode=True,  # 28 -> 14 -> 7 -> 4 -> 2 -> 1
            dropout=0.2,
            init="he",
        ),
        data=DataConfig(
            dataset="fashion_mnist",
            crop=28,
            scale_min=28,
            scale_max=32,
            mean=(72.94,),
            std=(90.02,),
            validation_fraction=1 / 12,  # 5,000 images
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.05, plateau_patience=3, metric="top1_error"
        ),
        evaluation=EvaluationConfig(
            # Up to 32 pixels pool5 is one cell; on more its further cells see padding.
            center_scale=30,
            scales=(28, 30, 32),
            batch_size=500,
        ),
        batch_size=128,
        num_epochs=11,
        validate_every_epochs=0.5,
        log_every_steps=50,
    )

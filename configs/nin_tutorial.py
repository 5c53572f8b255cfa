"""Trains the tutorials' NiN on Fashion-MNIST enlarged to 224 pixels.

  python train.py --config configs/nin_tutorial.py

The tutorials' settings: 10 epochs, batch 128, rate 0.05, neither momentum nor an L2
penalty, no augmentation. Made for a GPU or TPU; on two CPU cores an epoch takes hours.
Not run.
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
        model=NiNConfig(name="nin_tutorial", num_classes=10, in_channels=1),
        data=DataConfig(
            dataset="fashion_mnist",
            crop=224,
            scale_min=224,
            scale_max=224,
            mean=(0.0,),
            std=(255.0,),
            flip=False,
            validation_fraction=1 / 12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.05, momentum=0.0, weight_decay=0.0, metric="top1_error"
        ),
        evaluation=EvaluationConfig(center_scale=224, scales=(224, 256)),
        batch_size=128,
        num_epochs=10,
    )

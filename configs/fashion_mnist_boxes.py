"""Where items of Fashion-MNIST lie on canvases: appendix A of arXiv:1409.1556, small.

  python train.py --config configs/fashion_mnist_boxes.py
  python -m vgg_jax.localization runs/fashion_mnist_boxes/boxes \
      --classifier runs/fashion_mnist_boxes/classes

Two runs for two CPU cores: a classifier, and from its weights a network of boxes.
"""

import dataclasses

from vgg_jax.config import (
    Config,
    Curriculum,
    DataConfig,
    EvaluationConfig,
    LocalizationConfig,
    OptimizerConfig,
    VGGConfig,
)


def get_config() -> Curriculum:
    return Curriculum(runs={"classes": classes(), "boxes": boxes()})


def classes() -> Config:
    return Config(
        model=VGGConfig(
            name="vgg11_bn",
            num_classes=10,
            in_channels=1,
            width=0.125,
            fc_kernel=2,  # pool5 of a crop of 64 pixels is 2x2
            dropout=0.2,
            init="he",
        ),
        data=DataConfig(
            dataset="fashion_mnist_boxes",
            crop=64,
            scale_min=72,
            scale_max=96,
            mean=(55.0,),
            std=(60.0,),
            validation_fraction=1 / 30,  # 2,000 images
        ),
        optimizer=OptimizerConfig(learning_rate=0.05, metric="top1_error"),
        evaluation=EvaluationConfig(
            center_scale=72, scales=(72, 84, 96), batch_size=250
        ),
        batch_size=128,
        num_epochs=2,
        validate_every_epochs=0.5,
    )


def boxes() -> Config:
    found = classes()
    found.model.num_classes *= 4
    found.model.dropout = 0.0
    found.localization = LocalizationConfig(regression="pcr")
    found.optimizer = dataclasses.replace(
        found.optimizer, learning_rate=0.02, metric="box_error"
    )
    found.init_from = "classes"
    found.num_epochs = 1.5
    return found

"""These runs find items of Fashion-MNIST on canvases (arXiv:1409.1556, appendix A).

  python train.py --config configs/fashion_mnist_boxes.py
  python -m vgg_jax.localization --workdir runs/fashion_mnist_boxes/boxes \
      --classifier_workdir runs/fashion_mnist_boxes/classes

Two runs: a classifier, and from its weights a network that predicts boxes. Two cores of
an AMD EPYC shared with other work, 2026-11-24: 8 min 12 s for both. Localization error
of the true class 36.0 ± 0.9% on the center crop, 29.5 ± 0.9% dense at Q = 72, 84, 96.
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
    config = classes()
    config.model.num_classes = 4 * 10  # a box for each class
    config.model.dropout = 0.0
    config.localization = LocalizationConfig(regression="pcr")
    config.optimizer = dataclasses.replace(
        config.optimizer, learning_rate=0.02, metric="box_error"
    )
    config.init_from = "classes"
    config.num_epochs = 1.5
    return config

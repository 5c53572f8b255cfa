"""Trains the small VGG on Fashion-MNIST with batches of 4,096: 32 times as large.

  python train.py --config configs/fashion_mnist_pod.py
  python eval.py --config configs/fashion_mnist_pod.py

It shows the recipe of configs/vgg16_pod.py, whose batch is 32 times the paper's, on a
small scale: `python -m benchmarks.large_batch` compares it with small batches. The rate
is 32 times that of configs/fashion_mnist_vgg.py, which is what biases and batch
normalization learn at, after a linear warm-up; kernels take steps of LARS, at the
height of the rate 0.02 of their length: more than VGG-16's, for there are few steps.

Not run to the end; no setting was tuned. In 6 epochs of a narrower network it has a
validation error of 13.0%, where small batches have 8.0% (docs/training.md).
"""

import configs.fashion_mnist_vgg
from configs.vgg16_pod import enlarge_batches
from vgg_jax.config import Config

TIMES = 32  # the batch of configs/fashion_mnist_vgg.py
KERNEL_STEP = 0.02  # of the kernel's length, at the height of the rate


def get_config() -> Config:
    config = configs.fashion_mnist_vgg.get_config()
    enlarge_batches(config, TIMES, kernel_step=KERNEL_STEP, warmup_epochs=2)
    config.num_epochs = 14
    config.log_every_steps = 10
    return config

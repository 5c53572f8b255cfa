"""Trains the small VGG on Fashion-MNIST with batches of 1,024: 32 times as large.

  python train.py --config configs/fashion_mnist_pod.py
  python eval.py --config configs/fashion_mnist_pod.py

It shows the recipe of configs/vgg16_pod.py, whose batch is 32 times the paper's, on a
small scale: from batches of 32 to 54 steps an epoch, where ImageNet in batches of 8,192
has 155. `python -m benchmarks.large_batch` compares it with those batches of 32. The
rate is 32 times theirs, which is what biases and batch normalization learn at, after a
linear warm-up; kernels learn by LARS.

Not run at this width; docs/training.md has narrower ones.
"""

import configs.fashion_mnist_vgg
from configs.vgg16_pod import enlarge_batches
from vgg_jax.config import Config

SMALL_BATCH = 32
TIMES = 32
KERNEL_STEP = 0.02  # of a kernel's length, see configs/vgg16_pod.py


def in_small_batches() -> Config:
    """Returns what is enlarged: configs/fashion_mnist_vgg.py in batches of 32."""
    config = configs.fashion_mnist_vgg.get_config()
    # The linear rule (arXiv:1706.02677): a rate in proportion to the batch.
    config.optimizer.learning_rate *= SMALL_BATCH / config.batch_size
    config.batch_size = SMALL_BATCH
    config.num_epochs = 14
    return config


def get_config() -> Config:
    config = in_small_batches()
    enlarge_batches(config, TIMES, kernel_step=KERNEL_STEP, warmup_epochs=2)
    config.log_every_steps = 10
    return config

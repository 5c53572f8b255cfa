"""Trains VGG-16 with batch normalization on ImageNet in batches of 8,192: for a pod.

  python train.py --config configs/vgg16_pod.py

Batches of 256 leave one image to a chip of 256. A batch 32 times as large is 32 images
to each, and 155 steps an epoch. Batch normalization (not in the paper) is what such
batches are known to train with. The recipe is that of LARS (You, Gitman and Ginsburg,
arXiv:1708.03888) for its nearest relative, AlexNet, which they took to this batch
without loss, as their settings have it for AlexNet with batch normalization
(models/alexnet_bn of github.com/borisgin/nvcaffe): 100 epochs, 5 of them warm-up,
momentum 0.9, an L2 penalty of 5e-4, and a rate that falls as the square of the steps
left. What a gradient adds to a kernel's momentum has, by the rate times the trust
coefficient, 0.002 of the kernel's length there at a batch of 1,024, 0.01 at 8,192 and
0.024 at 16,384.

Biases and batch normalization have, as is usual since, no trust ratio and no penalty.
They learn by plain momentum at a rate of their own, which is the linear rule's
(arXiv:1706.02677): 32 times the 0.01 of a batch of 256. It is `learning_rate`; the
trust coefficient is such that kernels have the 0.01 above.

Not run.
"""

from configs.imagenet import imagenet
from vgg_jax.config import Config, OptimizerConfig

TIMES = 32  # the paper's batch
# What a gradient adds to the momentum, over the kernel's length, at the rate's height.
KERNEL_STEP = 0.01


def enlarge_batches(
    config: Config, times: int, *, kernel_step: float, warmup_epochs: float
) -> None:
    """Gives a configuration batches so many times as large, and LARS for them."""
    config.batch_size *= times
    rate = config.optimizer.learning_rate * times
    config.optimizer = OptimizerConfig(
        name="lars",
        learning_rate=rate,
        trust_coefficient=kernel_step / rate,
        schedule="polynomial",
        warmup_epochs=warmup_epochs,
        metric=config.optimizer.metric,
    )


def get_config() -> Config:
    config = imagenet("vgg16_bn")
    enlarge_batches(config, TIMES, kernel_step=KERNEL_STEP, warmup_epochs=5)
    config.num_epochs = 100
    return config

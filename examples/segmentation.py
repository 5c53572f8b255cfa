"""Segments pictures by FCN-8s on the features of a VGG: a project in Flax NNX.

  python examples/segmentation.py

FCN-8s (arXiv:1411.4038) scores the maps of three pools, and adds the scores from deep
to shallow, each enlarged bilinearly to the next. Here the network learns from random
weights, on pictures that are made; for your own pictures,
`create_model("vgg16", num_classes=None, weights="torchvision/vgg16")` starts well.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from made_pictures import SHAPES, mean_iou, shapes

from vgg_jax import ConvNet, create_model
from vgg_jax.preprocessing import Normalization

NORMALIZE = Normalization(mean=(127.5,) * 3, std=(73.5,) * 3)
POOLS = ("pool3", "pool4", "pool5")  # of strides 8, 16 and 32


class FCN8s(nnx.Module):
    """Scores each pixel: [N, H, W, 3] of any size -> [N, H, W, num_classes]."""

    def __init__(self, backbone: ConvNet, num_classes: int, rngs: nnx.Rngs):
        self.backbone = backbone
        for pool in POOLS:
            channels = backbone.feature_info[pool].channels
            score = nnx.Conv(channels, num_classes, (1, 1), rngs=rngs)
            setattr(self, f"score_{pool}", score)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Pads images to whole cells of pool5, so that the maps lie on each other."""
        height, width = images.shape[1:3]
        padding = ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0))
        maps = self.backbone.features(jnp.pad(images, padding), POOLS)
        scores = self.score_pool5(maps["pool5"])
        scores = self.score_pool4(maps["pool4"]) + enlarge(scores, 2)
        scores = self.score_pool3(maps["pool3"]) + enlarge(scores, 2)
        return enlarge(scores, 8)[:, :height, :width]


def enlarge(scores: jax.Array, factor: int) -> jax.Array:
    """Upsamples bilinearly: [N, h, w, C] -> [N, factor * h, factor * w, C]."""
    n, h, w, channels = scores.shape
    return jax.image.resize(scores, (n, factor * h, factor * w, channels), "bilinear")


@nnx.jit
def train_step(model: FCN8s, optimizer: nnx.Optimizer, batch: tuple) -> jax.Array:
    """Takes one step of the cross-entropy of all pixels, and returns the loss."""
    images, masks = batch

    def loss_fn(model: FCN8s) -> jax.Array:
        targets = jax.nn.one_hot(masks, len(SHAPES))
        return optax.softmax_cross_entropy(model(NORMALIZE(images)), targets).mean()

    loss, gradient = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradient)
    return loss


def main(
    steps: int = 200, side: int = 96, batch: int = 16, width: float = 0.25
) -> float:
    """Trains, prints the losses, and returns the mean IoU of unseen pictures."""
    rngs = nnx.Rngs(0)
    options = {"num_classes": None, "width": width, "init": "he"}
    model = FCN8s(create_model("vgg11_bn", rngs=rngs, **options), len(SHAPES), rngs)
    model.train()
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    for step in range(steps):
        loss = train_step(model, optimizer, shapes(batch, side, seed=step))
        if step % 20 == 0:
            print(f"step {step:3}: loss {loss:.3f}", flush=True)
    model.eval()
    images, masks = shapes(64, side, seed=10**6)
    predicted = nnx.jit(lambda model: model(NORMALIZE(images)).argmax(-1))(model)
    found, of_nothing = mean_iou(predicted, masks), mean_iou(0 * masks, masks)
    print(
        f"mean IoU {found:.1%} on unseen pictures; ground everywhere {of_nothing:.1%}"
    )
    return found


if __name__ == "__main__":
    main()

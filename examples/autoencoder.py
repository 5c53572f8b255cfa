"""Learns to pack pictures into few numbers, judged by LPIPS: plain JAX and Optax.

  python examples/autoencoder.py
  python examples/autoencoder.py torchvision/vgg16     # or a file of its weights

LPIPS (arXiv:1801.03924) is a pytree of weights, an argument of the jitted step as any
other. Without published weights it is made of the random features of a narrow VGG-11,
which need no download and tell shapes from smears, if not as people do.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from made_pictures import shapes

from vgg_jax import create_model
from vgg_jax.losses import FeatureExtractor, Lpips
from vgg_jax.losses.lpips import NORMALIZATION

KEY = jax.random.key(0)
STAGES = ("relu1_1", "relu2_1", "relu3_2", "relu4_2", "relu5_2")
# Channels before and after each halving of the sides, then each doubling.
PAIRS = ((3, 32), (32, 64), (64, 16), (16, 64), (64, 32), (32, 3))
ADAM = optax.adam(2e-3)
NHWC = ("NHWC", "HWIO", "NHWC")


def random_lpips() -> Lpips:
    """Makes LPIPS of random features, each of which weighs the same."""
    model = create_model("vgg11", num_classes=None, width=1 / 8, init="he", rngs=KEY)
    trunk = FeatureExtractor.from_model(model, STAGES, NORMALIZATION)
    heads = {name: jnp.ones(model.feature_info[name].channels) for name in STAGES}
    return Lpips(trunk=trunk, heads=heads)


def init() -> Any:
    """Makes the layers of the encoder, and the decoder, which is its mirror image."""
    keys, normal = jax.random.split(KEY, len(PAIRS)), jax.nn.initializers.he_normal()
    kernels = [
        normal(key, (4, 4, *pair)) for key, pair in zip(keys, PAIRS, strict=True)
    ]
    return [{"kernel": k, "bias": jnp.zeros(k.shape[-1])} for k in kernels]


def autoencode(layers: Any, images: jax.Array) -> jax.Array:
    """Packs and unpacks pixels 0-255: [N, H, W, 3] -> float32 [N, H, W, 3]."""
    x = images / 128.0 - 1
    for i, layer in enumerate(layers):
        convolve = lax.conv_general_dilated if i < 3 else lax.conv_transpose
        x = jax.nn.leaky_relu(x) if i else x
        x = convolve(x, layer["kernel"], (2, 2), "SAME", dimension_numbers=NHWC)
        x += layer["bias"]
    return 128 * (x + 1)


@jax.jit
def loss_fn(layers: Any, lpips: Lpips, images: jax.Array) -> Any:
    """Returns mean squared error plus LPIPS, and LPIPS alone."""
    packed = autoencode(layers, images)
    distance = lpips(packed, images, input_range=(0, 255)).mean()
    return jnp.square((packed - images) / 128).mean() + distance, distance


@jax.jit
def train_step(layers: Any, state: Any, lpips: Lpips, images: jax.Array) -> Any:
    """Takes one step; returns the layers and the state of Adam."""
    gradient, _ = jax.grad(loss_fn, has_aux=True)(layers, lpips, images)
    updates, state = ADAM.update(gradient, state)
    return optax.apply_updates(layers, updates), state


def main(weights: str = "", steps: int = 200, side: int = 64) -> dict[str, float]:
    """Trains; returns the LPIPS of unseen pictures at some steps, and of blanks."""
    lpips = Lpips.load(weights) if weights else random_lpips()
    layers, (unseen, _) = init(), shapes(16, side, seed=10**6)
    state, found = ADAM.init(layers), {}
    for step in range(steps + 1):
        if step % (steps // 4) == 0:
            found[f"step {step}"] = float(loss_fn(layers, lpips, unseen)[1])
        layers, state = train_step(layers, state, lpips, shapes(16, side, step)[0])
    blank = jnp.broadcast_to(unseen.mean((1, 2), keepdims=True), unseen.shape)
    found["mean color"] = float(lpips(blank, unseen, input_range=(0, 255)).mean())
    print("\n".join(f"{name:>10}: LPIPS {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

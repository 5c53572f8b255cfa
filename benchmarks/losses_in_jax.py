"""Times LPIPS of this library for losses.py; its speed needs no trained weights."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.worker import Parts, Steps, main, timed
from vgg_jax.compilation import onednn_options, prepare_jax
from vgg_jax.losses import FeatureExtractor, Lpips
from vgg_jax.losses.lpips import LAYERS, NORMALIZATION
from vgg_jax.models import create_model

RANGE = (-1, 1)


def make_lpips(width: float) -> Lpips:
    """Makes LPIPS of a VGG-16 with random weights and heads of ones."""
    model = create_model("vgg16", num_classes=None, width=width, rngs=jax.random.key(0))
    trunk = FeatureExtractor.from_model(model, LAYERS, NORMALIZATION)
    heads = {name: jnp.ones(model.feature_info[name].channels) for name in LAYERS}
    return Lpips(trunk=trunk, heads=heads)


def open_parts(size: int, batch_size: int, width: float, seconds: float) -> Parts:
    """Makes the parts of LPIPS that are timed."""
    jax.config.update("jax_platforms", "cpu")
    prepare_jax()
    lpips = make_lpips(width)
    x, y = (
        jax.random.uniform(jax.random.key(i), (batch_size, size, size, 3), minval=-1)
        for i in range(2)
    )

    compiled = functools.partial(jax.jit, compiler_options=onednn_options())

    @compiled
    def forward(lpips: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
        return lpips(x, y, input_range=RANGE)

    @compiled
    def gradient(lpips: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.grad(lambda x: lpips(x, y, input_range=RANGE).mean())(x)

    @compiled
    def cached(lpips: Lpips, x: jax.Array, target: dict[str, jax.Array]) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            features = lpips.features(x, input_range=RANGE)
            return lpips.distance(features, target).mean()

        return jax.grad(loss)(x)

    target = lpips.features(y, input_range=RANGE)

    def steps(function: jax.stages.Wrapped, other: object) -> Steps:
        def take(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(function(lpips, x, other))

        return take

    parameters = sum(array.size for array in jax.tree.leaves(lpips))
    return {
        "parameters": lambda: lambda: parameters,
        "forward": lambda: timed(steps(forward, y), seconds),
        "gradient": lambda: timed(steps(gradient, y), seconds),
        "cached": lambda: timed(steps(cached, target), seconds),
    }


if __name__ == "__main__":
    main(open_parts)

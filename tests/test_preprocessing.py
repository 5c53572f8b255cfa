import jax.numpy as jnp
import numpy as np

from vgg_jax.preprocessing import translate


def test_translate_is_a_window_on_the_image_padded_with_zeros():
    pad = 3
    rng = np.random.default_rng(0)
    offsets = np.array([(y, x) for y in range(-pad, pad + 1) for x in (-3, -1, 0, 2)])
    images = rng.normal(size=(len(offsets), 5, 7, 2)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = [
        image[pad + y : pad + y + 5, pad + x : pad + x + 7]
        for image, (y, x) in zip(padded, offsets, strict=True)
    ]
    moved = translate(jnp.asarray(images), jnp.asarray(offsets, jnp.int32))
    np.testing.assert_array_equal(moved, expected)

"""Dense evaluation against the same averages in NumPy."""

import math
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.data.transforms import rescale
from vgg_jax.inference.dense import (
    dense_posteriors,
    images_per_device,
    largest_batch,
    padded_shapes,
)
from vgg_jax.inference.forward import Posteriors, apply, mirror_images
from vgg_jax.models import ConvNet


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def over_space(scores: np.ndarray, averaging: str) -> np.ndarray:
    cells = scores.astype(np.float64).reshape(len(scores), -1, scores.shape[-1])
    if averaging == "score_map":
        return softmax(cells.mean(axis=1))
    return softmax(cells).mean(axis=1)


def expected_posteriors(
    model: ConvNet, images: np.ndarray, averaging: str, flip: bool
) -> np.ndarray:
    found = over_space(np.asarray(model.score_map(jnp.asarray(images))), averaging)
    if not flip:
        return found
    mirrored = np.flip(images, axis=2).copy()
    other = over_space(np.asarray(model.score_map(jnp.asarray(mirrored))), averaging)
    return (found + other) / 2


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(1)
    blocks = rng.normal(size=(3, 12, 16, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return blocks.astype(np.float32)


@pytest.mark.parametrize("averaging", ["score_map", "posteriors"])
@pytest.mark.parametrize("flip", [False, True])
def test_posteriors_are_the_averages_of_section_3_2(
    model: ConvNet, images: np.ndarray, averaging: str, flip: bool
) -> None:
    head = Posteriors(averaging=averaging, flip=flip)
    found = jax.jit(lambda x: head(model, x, None, {}))(images)
    expected = expected_posteriors(model, images, averaging, flip)
    chex.assert_shape(found, (3, 7))
    chex.assert_trees_all_close(np.asarray(found, np.float64), expected, atol=1e-5)
    chex.assert_trees_all_close(found.sum(axis=-1), jnp.ones(3), atol=1e-5)


def test_order_of_softmax_and_flip_matter_to_these_images(
    model: ConvNet, images: np.ndarray
) -> None:
    # Without this the test above could not tell them apart.
    by_map = expected_posteriors(model, images, "score_map", True)
    assert (
        np.abs(by_map - expected_posteriors(model, images, "posteriors", True)).max()
        > 0.02
    )
    assert (
        np.abs(by_map - expected_posteriors(model, images, "score_map", False)).max()
        > 0.02
    )


class Halves:
    """Its two scores, in one cell, are the mean of the left and of the upper half."""

    layers = ()

    def score_map(self, x: jax.Array, *, sizes: None) -> jax.Array:
        left = x[:, :, : x.shape[2] // 2].mean(axis=(1, 2, 3))
        upper = x[:, : x.shape[1] // 2].mean(axis=(1, 2, 3))
        return jnp.stack([left, upper], axis=-1)[:, None, None]


def test_the_flip_is_left_to_right() -> None:
    image = np.zeros((1, 4, 6, 1), np.float32)
    image[:, :, :3] = 4.0  # left half; the upper half's mean is 2 before and after
    found = Posteriors()(Halves(), image, None, {})  # type: ignore[arg-type]
    expected = (softmax(np.array([4.0, 2.0])) + softmax(np.array([0.0, 2.0]))) / 2
    chex.assert_trees_all_close(np.asarray(found[0], np.float64), expected, atol=1e-6)


def test_one_cell_is_the_classifier(model: ConvNet, images: np.ndarray) -> None:
    crops = images[:, :32, :32]
    for averaging in ("score_map", "posteriors"):
        head = Posteriors(averaging=averaging, flip=False)
        found = head(model, crops, None, {})
        chex.assert_trees_all_close(found, jax.nn.softmax(model(crops)), atol=1e-6)


@pytest.mark.parametrize("averaging", ["score_map", "posteriors"])
def test_dense_posteriors_of_one_image_over_scales(
    model: ConvNet, averaging: str
) -> None:
    blocks = np.random.default_rng(2).integers(0, 256, (7, 5, 3), np.uint8)
    image = blocks.repeat(9, axis=0).repeat(9, axis=1)
    mean, std = (120.0, 110.0, 100.0), (50.0, 60.0, 70.0)
    scales = (32, 64, 80)
    found = dense_posteriors(
        model, image, scales, mean=mean, std=std, averaging=averaging
    )
    each = []
    for scale in scales:
        pixels = (rescale(image, scale).astype(np.float64) - mean) / std
        each.append(
            expected_posteriors(model, np.float32(pixels)[None], averaging, True)[0]
        )
    chex.assert_shape(found, (7,))
    chex.assert_trees_all_close(np.float64(found), np.mean(each, axis=0), atol=1e-5)
    assert np.abs(each[0] - np.mean(each, axis=0)).max() > 0.01


def sized_batch(
    images: np.ndarray, sizes: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Each image cut to its size, and rubbish around it."""
    batch = np.random.default_rng(3).normal(size=images.shape).astype(np.float32)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:h, :w] = image[:h, :w]
    return batch, np.asarray(sizes, np.int32)


@pytest.mark.parametrize("averaging", ["score_map", "posteriors"])
def test_images_of_several_sizes_share_a_batch(
    model: ConvNet, images: np.ndarray, averaging: str
) -> None:
    sizes = [(96, 128), (71, 90), (96, 33)]
    head = Posteriors(averaging=averaging)
    found = jax.jit(lambda x, n: head(model, x, n, {}))(*sized_batch(images, sizes))
    expected = [
        expected_posteriors(model, image[None, :h, :w], averaging, True)[0]
        for image, (h, w) in zip(images, sizes, strict=True)
    ]
    chex.assert_trees_all_close(np.float64(found), np.stack(expected), atol=1e-5)


def test_a_mirror_image_is_within_its_width(images: np.ndarray) -> None:
    sizes = [(96, 128), (71, 90), (96, 33)]
    found = mirror_images(*map(jnp.asarray, sized_batch(images, sizes)))
    for row, image, (h, w) in zip(found, images, sizes, strict=True):
        np.testing.assert_array_equal(row[:h, :w], image[:h, :w][:, ::-1])


def test_dense_posteriors_compile_once_a_bucket(model: ConvNet) -> None:
    apply.clear_cache()
    rng = np.random.default_rng(0)
    for shape in [(40, 50), (41, 50), (50, 45), (60, 40), (40, 90), (64, 64)]:
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        dense_posteriors(model, image, (32, 40), bucket_ratios=(0.5, 1.0, 1.5))
    # Wide, tall and square at two scales; 40x90 in tiles.
    assert apply._cache_size() == 6 + 1


@pytest.mark.parametrize("averaging", ["score_map", "posteriors"])
def test_a_long_image_is_what_its_bucket_would_make_it(
    model: ConvNet, averaging: str
) -> None:
    image = np.random.default_rng(4).integers(0, 256, (9, 31, 3), np.uint8)
    image = image.repeat(5, axis=0).repeat(5, axis=1)
    tiled, padded = (
        dense_posteriors(
            model, image, (33, 47), averaging=averaging, bucket_ratios=ratios
        )
        for ratios in ((1.0,), (4.0,))
    )
    chex.assert_trees_all_close(tiled, padded, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((40, 40, 3), np.float32), {}, "uint8"),
        (np.zeros((40, 40, 1), np.uint8), {}, "40, 40, 1"),
        (np.zeros((40, 40), np.uint8), {}, "40, 40"),
        (np.zeros((40, 40, 3), np.uint8), {"mean": (1.0,)}, "one a channel"),
        (np.zeros((40, 40, 3), np.uint8), {"scales": ()}, "at least 1 pixel"),
        (np.zeros((40, 40, 3), np.uint8), {"scales": (40, 0)}, "at least 1 pixel"),
        (np.zeros((40, 40, 3), np.uint8), {"averaging": "posterior"}, "'posteriors'"),
        (np.zeros((40, 40, 3), np.uint8), {"scales": (64, 16)}, "32x32"),
        (np.zeros((40, 40, 3), np.uint8), {"bucket_ratios": (0.0,)}, "above 0, got 0"),
    ],
)
def test_what_dense_posteriors_refuses(
    model: ConvNet, image: np.ndarray, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dense_posteriors(model, image, **{"scales": (32,), **options})


def test_importing_it_is_light() -> None:
    heavy = {"grain", "orbax", "matplotlib", "cv2", "tensorflow_datasets"}
    script = f"import sys, vgg_jax.inference.dense; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def imagenet(batch_size: int | None) -> Config:
    return Config(
        model=VGGConfig(name="vgg16"),
        data=DataConfig(dataset="imagenet2012"),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )


@pytest.mark.parametrize("devices", [1, 8, 64])
def test_a_device_is_given_no_more_pixels_than_its_crops_have(devices: int) -> None:
    config = imagenet(512)
    budget = 512 // devices * 224 * 224
    for scale in (224, 256, 384, 512):
        for shape in padded_shapes(config.evaluation.bucket_ratios, scale):
            images = images_per_device(config, devices, shape)
            fits = images * math.prod(shape) <= budget
            assert fits or images == 1
            assert images == 1 or images % 2 == 0  # a TPU makes pairs
            # Two more would be too much.
            assert (images + 2) * math.prod(shape) > budget
    assert images_per_device(config, devices, (224, 224)) == 512 // devices
    # By default a device is given as much, however many there are.
    assert images_per_device(imagenet(None), devices, (224, 224)) == 64


def test_the_largest_batch_has_the_most_pixels() -> None:
    # 64 crops are 3,211,264 pixels: six images of 512x1024 are nearer than three of
    # 512x1690, and a device that has room for no image is given the largest of all.
    images, shape = largest_batch(imagenet(64), 1)
    assert images * math.prod(shape) <= 64 * 224**2
    assert images * math.prod(shape) > 3 * 512 * 1690
    assert largest_batch(imagenet(64), 64) == (1, (1707, 512))

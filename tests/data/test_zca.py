"""Global contrast normalization and ZCA whitening beside plain NumPy."""

import dataclasses
import json
import types
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.config import Config, DataConfig, EvaluationConfig, NiNConfig
from vgg_jax.data import zca
from vgg_jax.data.sources import open_source
from vgg_jax.data.zca import Whitening, load_whitening, preprocessing_of
from vgg_jax.evaluation.protocols import evaluate
from vgg_jax.predict import load_run
from vgg_jax.preprocessing import Normalization
from vgg_jax.report.heat import heat_map
from vgg_jax.tools import whitening as command
from vgg_jax.training.loop import train
from vgg_jax.training.workdir.checkpoint import restore_model

SIDE, PICTURES = 8, 300


def draw(seed: int, count: int) -> np.ndarray:
    """Pictures whose neighboring pixels are alike: uint8 [count, SIDE, SIDE, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, 3), np.uint8)
    noise = rng.normal(0, 8, (count, SIDE, SIDE, 3))
    smooth = np.stack([cv2.resize(image, (SIDE, SIDE)) for image in coarse])
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on a folder of such pictures, whose whitening the command computed."""
    root = tmp_path_factory.mktemp("pictures")
    images = draw(0, PICTURES)
    for split, part in (("train", images[:-60]), ("test", images[-60:])):
        for i, image in enumerate(part):
            path = root / split / "ab"[i % 2] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image[..., ::-1])
    config = Config(
        model=NiNConfig(name="nin_cifar", num_classes=2, width=0.05),
        data=DataConfig(
            dataset="folder",
            data_dir=str(root),
            crop=SIDE,
            scale_min=SIDE,
            scale_max=SIDE,
            validation_fraction=0.2,
            whiten=True,
            num_threads=1,
        ),
        evaluation=EvaluationConfig(center_scale=SIDE, scales=(SIDE,), batch_size=16),
        batch_size=16,
        num_epochs=1,
    )
    config.optimizer.metric = "loss"
    assert command.run(types.SimpleNamespace(config=config)) == 0
    return config


def by_hand(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """pylearn2's preparation, in float64 and with its order of the numbers."""

    def contrast(images: np.ndarray) -> np.ndarray:
        rows = images.astype(float).transpose(0, 3, 1, 2).reshape(len(images), -1)
        rows -= rows.mean(axis=1, keepdims=True)
        return 55 * rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))

    rows = contrast(train)
    mean = rows.mean(axis=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    values, vectors = np.linalg.eigh(covariance + 0.1 * np.eye(len(mean)))
    matrix = vectors @ np.diag(values**-0.5) @ vectors.T
    white = (contrast(images) - mean) @ matrix
    return white.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def test_it_is_that_of_pylearn2(config):
    images = draw(0, PICTURES)
    test = images[-60:]
    whiten = preprocessing_of(config.data)
    assert whiten.channels == 3
    white = whiten(jnp.asarray(test))
    assert white.dtype == jnp.float32
    np.testing.assert_allclose(white, by_hand(images[:-60], test), atol=2e-4)
    # Neighbors are no longer alike.
    pairs = np.asarray(white)[:, :, :-1].ravel(), np.asarray(white)[:, :, 1:].ravel()
    assert np.corrcoef(*pairs)[0, 1] < 0.1
    assert np.corrcoef(test[:, :, :-1].ravel(), test[:, :, 1:].ravel())[0, 1] > 0.6


def test_brightness_and_contrast_do_not_matter(config):
    whiten = preprocessing_of(config.data)
    images = draw(1, 4) // 3
    np.testing.assert_allclose(whiten(2 * images + 5), whiten(images), atol=1e-3)
    shift = jnp.full((4, 3), 9.0)  # the random color shift is added first
    np.testing.assert_allclose(whiten(images, shift), whiten(images + 9), atol=1e-3)


@pytest.mark.parametrize("gray", [0, 77, 255])
def test_an_image_of_one_gray_level_has_no_contrast_to_blow_up(config, gray):
    whiten = preprocessing_of(config.data)
    flat = np.full((1, SIDE, SIDE, 3), gray, np.uint8)
    shift = jnp.full((1, 3), 0.1)  # its sum is rounded, so the mean is not exact
    expected = -whiten.mean.ravel() @ whiten.matrix
    np.testing.assert_allclose(
        whiten(flat, shift).ravel(), expected, rtol=1e-4, atol=1e-4
    )


def test_images_of_another_size_are_refused(config):
    whiten = preprocessing_of(config.data)
    with pytest.raises(ValueError, match=r"images of 8x8x3, .* got 8x9x3; .* Q = 8"):
        whiten(jnp.zeros((1, SIDE, SIDE + 1, 3)))


def test_equal_statistics_are_one_program(config):
    first, again = load_whitening(config.data), load_whitening(config.data)
    assert first == again and hash(first) == hash(again)
    other = Whitening(first.mean + 1, first.matrix)
    assert first != other and first != Normalization((1.0,), (1.0,))
    assert preprocessing_of(dataclasses.replace(config.data, whiten=False)) == (
        Normalization(config.data.mean, config.data.std)
    )


def test_missing_statistics_say_what_to_type(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m vgg_jax\.tools\.whitening"):
        load_whitening(dataclasses.replace(config.data, data_dir=str(tmp_path)))
    larger = dataclasses.replace(config.data, crop=9, scale_min=9, scale_max=9)
    with pytest.raises(ValueError, match=r"expected statistics .* \(9, 9, 3\) in "):
        load_whitening(larger)
    assert (
        zca.whitening_path(dataclasses.replace(config.data, dataset="tfds:a/b:1.0.0"))
        == Path(config.data.data_dir) / ".tfds_a_b_1.0.0_whitening.npz"
    )


@pytest.mark.slow
def test_training_and_evaluation_whiten(config, tmp_path, capfd):
    padded = dataclasses.replace(config.data, pad=2)
    assert train(dataclasses.replace(config, data=padded), tmp_path) is None
    assert "finished" in capfd.readouterr().out
    model, *_ = restore_model(tmp_path)
    # What training measured is the loss on whitened images.
    held = open_source(config.data, "validation")
    files = [Path(held[i]["name"]) for i in range(len(held))]
    images = np.stack([cv2.imread(str(file))[..., ::-1] for file in files])
    logits = jax.jit(model)(preprocessing_of(config.data)(images))
    labels = np.array([held[i]["label"] for i in range(len(held))])
    losses = -jax.nn.log_softmax(logits)[np.arange(len(held)), labels]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line).get("validation_loss") for line in lines]
    np.testing.assert_allclose([m for m in measured if m], losses.mean(), rtol=1e-4)

    source = open_source(config.data, "test")
    numbers = [int(Path(source[i]["name"]).stem) for i in range(60)]
    images = preprocessing_of(config.data)(draw(0, PICTURES)[-60:][numbers])
    posteriors = jax.jit(lambda images: jax.nn.softmax(model(images)))
    expected = posteriors(images)
    center = evaluate(model, source, config, protocol="center", scales=(SIDE,))
    np.testing.assert_allclose(center.posteriors, expected, atol=1e-5)
    mirrored = posteriors(images[:, :, ::-1])  # after whitening
    dense = evaluate(model, source, config, protocol="dense", scales=(SIDE,))
    np.testing.assert_allclose(dense.posteriors, (expected + mirrored) / 2, atol=1e-5)
    with pytest.raises(ValueError, match=r"images of 8x8x3, .* got 10x10x3"):
        evaluate(model, source, config, protocol="dense", scales=(SIDE + 2,))
    picture = draw(3, 1)[0]
    heat = heat_map(model, picture, 1, SIDE, preprocessing_of(config.data))
    np.testing.assert_array_equal(heat.image, picture)
    with pytest.raises(ValueError, match=r"whitened images of 8x8 pixels"):
        load_run(tmp_path)

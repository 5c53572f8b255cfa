import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vgg_jax.config import DataConfig
from vgg_jax.data import color, transforms
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.pipeline import train_batches
from vgg_jax.data.sources import open_source
from vgg_jax.tools import color_pca as pca

ROOT = Path(__file__).parents[2]
CONFIG = DataConfig(
    dataset="folder", crop=16, scale_min=64, scale_max=96, color_shift=0.1
)


class Files:
    class_names = ("one",)

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        return {"image": self._files[index], "label": 0, "name": f"file {index}"}


def moments(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of pixels, where every image weighs 1."""
    pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images])
    weights = np.concatenate(
        [np.full(image[..., 0].size, 1 / image[..., 0].size) for image in images]
    )
    mean = np.average(pixels, axis=0, weights=weights)
    return mean, np.cov(pixels.T, aweights=weights, ddof=0)


def test_principal_components_of_photographs(photographs, tmp_path):
    pixels = pca.measure_pixels(Files(photographs), CONFIG, images=10)
    images = [
        transforms.rescale(transforms.decode(data, 3, "", 64), 64)
        for data in photographs
    ]
    mean, covariance = moments(images)
    assert pixels.images == 3
    np.testing.assert_allclose(pixels.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(pixels.axes @ pixels.axes.T, np.eye(3), atol=1e-9)
    along = pixels.axes @ covariance @ pixels.axes.T
    np.testing.assert_allclose(along, np.diag(pixels.deviations**2), atol=1e-4)
    assert (np.diff(pixels.deviations) < 0).all()
    assert (pixels.axes[0] > 0.4).all()  # gray varies most
    pixels.save(tmp_path / "colors.json")
    axes = np.array(json.loads((tmp_path / "colors.json").read_text())["axes"])
    np.testing.assert_allclose(axes.T @ axes, covariance, atol=1e-4)


def test_gray_pictures_have_one_axis(photographs):
    config = dataclasses.replace(CONFIG, mean=(0.0,), std=(1.0,))
    pixels = pca.measure_pixels(Files(photographs[:1]), config, images=10)
    image = transforms.rescale(transforms.decode(photographs[0], 1, "", 64), 64)
    np.testing.assert_allclose(pixels.deviations, [image.std()], rtol=1e-6)
    np.testing.assert_array_equal(pixels.axes, [[1.0]])


def test_a_sample_is_drawn_once_and_for_all():
    files = [
        cv2.imencode(".png", np.full((8, 8, 3), i, np.uint8))[1].tobytes()
        for i in range(200)
    ]
    pixels = pca.measure_pixels(Files(files), CONFIG, images=80)
    assert pixels.images == 80
    assert 80 < pixels.mean[0] < 120
    assert str(pca.measure_pixels(Files(files), CONFIG, images=80)) == str(pixels)
    with pytest.raises(ValueError, match="--images of at least 1, got 0"):
        pca.measure_pixels(Files(files), CONFIG, images=0)


def test_corrupt_images_are_left_out_if_the_config_says_so(photographs):
    torn = [*photographs, photographs[0][:5000]]
    with pytest.raises(CorruptImage, match="cannot decode file 3"):
        pca.measure_pixels(Files(torn), CONFIG, images=10)
    config = dataclasses.replace(CONFIG, on_corrupt_image="skip")
    assert str(pca.measure_pixels(Files(torn), config, images=10)) == str(
        pca.measure_pixels(Files(photographs), CONFIG, images=10)
    )


def test_a_run_uses_what_the_command_leaves(folder):
    command = [
        *(
            sys.executable,
            "-m",
            "vgg_jax.tools.color_pca",
            "--config",
            "configs/vgg16.py",
        ),
        "--config.data.dataset=folder",
        f"--config.data.data_dir={folder}",
        "--config.data.num_workers=0",
        "--config.data.color_pca=computed",
        "--images=50",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 50 images" in done.stdout and "--config.data.mean=" in done.stdout
    assert "colors  50/50 images" in done.stderr
    config = dataclasses.replace(
        CONFIG, data_dir=str(folder), color_pca="computed", num_threads=1
    )
    source = open_source(config, "train")
    batches = train_batches(
        source, config, channels=3, batch_size=80, seed=0, start_step=0
    )
    shifts = np.concatenate([next(batches)["shift"] for _ in range(30)])
    batches.close()
    axes = color.load_axes(config)
    np.testing.assert_allclose(np.cov(shifts.T), 0.01 * axes.T @ axes, rtol=0.2, atol=2)
    assert 30 < np.linalg.norm(axes[0]) < 120

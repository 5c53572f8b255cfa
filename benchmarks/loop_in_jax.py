"""Trains as train.py does, for gpu.py: the whole loop, with its input pipeline."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from benchmarks.worker import Parts, main
from vgg_jax.compilation import prepare_jax
from vgg_jax.config import Config, from_dict

PICTURES = 64  # that are different; files of all classes repeat them
SIZE = (375, 500)  # height and width of a training picture, in pixels
LINES = 8  # that a run logs


def open_parts(config: dict[str, Any], steps: int, tf32: bool) -> Parts:
    """Makes the part "loop", whose answer has the numbers of each logged line.

    Args:
        config: the configuration, as `to_dict` gives it; its data are left out.
        steps: how many steps are trained.
        tf32: whether products of float32 numbers may be of their first 10 bits.
    """
    jax.config.update("jax_default_matmul_precision", None if tf32 else "highest")
    prepare_jax()
    return {"loop": lambda: lambda: train_on_pictures(from_dict(config), steps)}


def train_on_pictures(config: Config, steps: int) -> list[dict[str, float]]:
    """Trains on JPEGs in a folder that is removed; returns the lines it logged.

    The first line, whose images were read ahead while the step compiled, is left out.
    """
    from vgg_jax.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        pictures, workdir = Path(folder) / "pictures", Path(folder) / "run"
        classes = config.model.num_classes
        assert classes is not None
        write_pictures(pictures, classes)
        config.data.dataset, config.data.data_dir = "folder", str(pictures)
        config.data.num_threads = len(os.sched_getaffinity(0))
        config.log_every_steps = max(1, steps // LINES)
        config.num_epochs = steps * config.batch_size / classes
        config.validate_every_epochs = config.num_epochs
        config.checkpoint_every_steps = steps
        train(config, str(workdir))
        text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "images_per_second" in line][1:]


def write_pictures(folder: Path, classes: int) -> None:
    """Writes a training picture, and a small one to validate and test, of each class.

    They are noise of all frequencies, about as large as photographs once encoded.
    """
    large = [encode_noise(seed, SIZE) for seed in range(min(PICTURES, classes))]
    small = encode_noise(0, (32, 32))
    for i in range(classes):
        for split, data in (
            ("train", large[i % len(large)]),
            ("validation", small),
            ("test", small),
        ):
            place = folder / split / f"{i:04}"
            place.mkdir(parents=True)
            (place / "picture.jpg").write_bytes(data)


def encode_noise(seed: int, size: tuple[int, int]) -> bytes:
    """Makes a JPEG, of a quality of 90, of noise whose fine parts are the weakest."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.full((height, width, 3), 128, np.float32)
    for cell in (1, 2, 4, 8, 16, 32, 64):
        shape = (-(-height // cell), -(-width // cell), 3)
        noise = rng.normal(0, 5 * cell**0.4, shape).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


if __name__ == "__main__":
    main(open_parts)

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import sklearn.datasets

from vgg_jax.config import DataConfig

Picture = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def fashion_mnist() -> DataConfig:
    """The settings of real Fashion-MNIST, prepared once for all runs of the tests."""
    return DataConfig(
        dataset="fashion_mnist",
        data_dir=os.environ.get("VGG_JAX_TEST_DATA", DataConfig.data_dir),
        crop=28,
        scale_min=28,
        scale_max=36,
        mean=(72.9,),
        std=(90.0,),
        validation_fraction=0.05,
        num_threads=2,
    )


@pytest.fixture(scope="session")
def picture() -> Picture:
    """A smooth picture [height, width, 3]: red grows down, green to the right."""

    def make(height: int, width: int, blue: int = 0) -> np.ndarray:
        image = np.empty((height, width, 3), np.uint8)
        image[..., 0] = np.linspace(0, 250, height)[:, np.newaxis]
        image[..., 1] = np.linspace(0, 250, width)
        image[..., 2] = blue
        return image

    return make


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """JPEG files of a pagoda, a flower and a portrait: 427x640, 427x640, 600x512."""
    landscapes = Path(sklearn.datasets.__file__).parent / "images"
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    paths = [landscapes / "china.jpg", landscapes / "flower.jpg", portrait]
    return [path.read_bytes() for path in paths]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """CLASS/* of three classes, JPEG and PNG of several shapes, 40 pictures each."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name).mkdir()
        for i in range(40):
            image = picture(34 + i % 3, 40 - i % 2, blue=80 * label)[..., ::-1]
            suffix = (".jpg", ".JPEG", ".png", ".PNG")[i % 4]
            data = cv2.imencode(suffix.lower(), image)[1].tobytes()
            (tmp_path / name / f"{i:02}{suffix}").write_bytes(data)
    return tmp_path


@pytest.fixture
def folder_config(folder: Path) -> DataConfig:
    return DataConfig(
        dataset="folder",
        data_dir=str(folder),
        crop=32,
        scale_min=32,
        scale_max=40,
        validation_fraction=0.2,
        num_threads=2,
    )

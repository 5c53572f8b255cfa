"""A run of seconds: drawn shapes, a few hundred parameters."""

from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from tests.shapes import draw_shapes
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    VGGConfig,
)
from vgg_jax.distributed import make_mesh
from vgg_jax.training import loop

TinyConfig = Callable[..., Config]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars, boxes and discs, a folder a class; 30 to train on, 4 to test."""
    root = tmp_path_factory.mktemp("shapes")
    draw_shapes(root, {"train": 30, "test": 4}, width=36)
    return root


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on one of the eight devices: compiled in half the time."""
    monkeypatch.setattr(loop, "make_mesh", lambda: make_mesh(jax.devices()[:1]))


@pytest.fixture
def tiny_config(shapes: Path) -> TinyConfig:
    """A network of the paper at a twentieth of its width, on those shapes."""

    def make(name: str = "vgg11", *, init: str = "he", rate: float = 0.01) -> Config:
        return Config(
            model=VGGConfig(
                name=name,
                num_classes=3,
                in_channels=1,
                width=0.05,
                fc_kernel=1,
                init=init,
            ),
            data=DataConfig(
                dataset="folder",
                data_dir=str(shapes),
                crop=32,
                scale_min=32,
                scale_max=32,
                mean=(60.0,),
                std=(80.0,),
                validation_fraction=0.25,
                num_threads=1,
            ),
            optimizer=OptimizerConfig(learning_rate=rate, metric="top1_error"),
            evaluation=EvaluationConfig(center_scale=32, scales=(32,), batch_size=16),
            batch_size=8,
            num_epochs=2,
            log_every_steps=5,
            checkpoint_every_steps=5,
        )

    return make

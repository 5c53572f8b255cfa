"""Synthetic pictures, and networks narrow enough to compile in a moment."""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, FullyConnected, Layer, MaxPool, Relu
from vgg_jax.predict import Classifier
from vgg_jax.preprocessing import Normalization

NAMES = tuple("abcdefg")  # of the classes

CLASSES = 7


@dataclasses.dataclass
class Pictures:
    """A source of PNG files in memory."""

    images: list[np.ndarray]
    labels: list[int]
    class_names: tuple[str, ...]
    corrupt: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        data = cv2.imencode(".png", self.images[i][..., ::-1])[1].tobytes()
        if i in self.corrupt:
            data = data[:20]
        return {"image": data, "label": self.labels[i], "name": f"picture{i}.png"}


@pytest.fixture
def make_source() -> Callable[..., Pictures]:
    """(shapes of the pictures, corrupt numbers) -> a source; the pictures are blocks of
    random color, which a resize does not wash out, and have no symmetry."""

    def make(
        shapes: Sequence[tuple[int, int]],
        corrupt: tuple[int, ...] = (),
        channels: int = 3,
        classes: int = CLASSES,
    ) -> Pictures:
        rng = np.random.default_rng(0)
        images = []
        for h, w in shapes:
            blocks = rng.integers(0, 256, (-(-h // 8), -(-w // 8), channels), np.uint8)
            image = blocks.repeat(8, axis=0).repeat(8, axis=1)[:h, :w]
            images.append(image)
        labels = [int(label) for label in rng.integers(0, classes, len(shapes))]
        names = tuple(f"class {i}" for i in range(classes))
        return Pictures(images, labels, names, corrupt)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., vgg_jax.ConvNet]:
    """(seed, layers) -> a small network, whose scores are far apart; by default one for
    32x32 crops."""
    standard = (
        Conv("conv1", 8, kernel=5, padding=2),
        Relu("relu1"),
        MaxPool("pool1", window=4, stride=4, ceil_mode=False),
        Conv("conv2", 16, kernel=3, padding=1),
        Relu("relu2"),
        MaxPool("pool2", window=4, stride=4, ceil_mode=False),
        FullyConnected("fc8", CLASSES, kernel=2),
    )

    def make(seed: int, layers: tuple[Layer, ...] = standard) -> vgg_jax.ConvNet:
        abstract = nnx.eval_shape(
            lambda: vgg_jax.ConvNet(
                layers,
                num_classes=CLASSES,
                in_channels=3,
                init="he",
                dtype="float32",
                rngs=nnx.Rngs(0),
            )
        )
        graphdef, state = nnx.split(abstract)
        rng = np.random.default_rng(seed)  # JAX's would take seconds to compile

        def weights(a: jax.ShapeDtypeStruct) -> jax.Array:
            scale = 1.2 * np.prod(a.shape[:-1]) ** -0.5 if len(a.shape) > 1 else 0.1
            return jnp.asarray(rng.normal(size=a.shape) * scale, a.dtype)

        return nnx.merge(graphdef, jax.tree.map(weights, state))

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., vgg_jax.ConvNet]) -> vgg_jax.ConvNet:
    return make_model(0)


@pytest.fixture
def config() -> Config:
    return Config(
        model=VGGConfig(name="vgg11", num_classes=CLASSES),
        data=DataConfig(
            dataset="folder",
            crop=32,
            scale_min=32,
            scale_max=64,
            mean=(120.0, 125.0, 130.0),
            std=(60.0, 55.0, 50.0),
            num_threads=1,
        ),
        evaluation=EvaluationConfig(center_scale=48, scales=(32, 48, 64), batch_size=8),
    )


@pytest.fixture
def classifier(model: ConvNet, config: Config) -> Classifier:
    return Classifier(
        model=model,
        class_names=NAMES,
        crop=config.data.crop,
        normalization=Normalization(config.data.mean, config.data.std),
        scales=(32, 48),
        averaging="score_map",
        max_pixels=5000,
    )


@pytest.fixture
def small_picture(make_source: Callable) -> np.ndarray:
    """A picture [40, 56, 3] of colored blocks."""
    return make_source([(40, 56)]).images[0]

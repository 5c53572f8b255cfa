"""Every configuration loads, builds its network and takes its own training crop."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vgg_jax import MODELS, create_model
from vgg_jax.config import Config, NiNConfig
from vgg_jax.models.layers import output_size

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python train.py --config configs/{path.name}" in (module.__doc__ or "")
    return module.get_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_fits_itself(path: Path) -> None:
    config = load(path)
    model = nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )
    crop, channels = config.data.crop, config.model.in_channels
    images = jax.ShapeDtypeStruct((2, crop, crop, channels), jnp.float32)
    graphdef, state = nnx.split(model)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
    assert logits.shape == (2, config.model.num_classes)
    assert output_size(model.layers, crop) == 1 or isinstance(config.model, NiNConfig)
    assert len(config.data.mean) == len(config.data.std) == channels
    assert crop <= config.data.scale_min <= config.data.scale_max
    assert crop <= config.evaluation.center_scale
    assert min(output_size(model.layers, q) for q in config.evaluation.scales) >= 1
    assert config.optimizer.metric in ("top1_error", "top5_error")


def test_every_network_has_a_configuration() -> None:
    assert {load(path).model.name for path in FILES} == set(MODELS)


def test_imagenet_configurations_follow_the_paper() -> None:
    for path in FILES:
        config = load(path)
        if config.data.dataset != "imagenet2012" or not path.stem.startswith("vgg"):
            continue
        assert config.batch_size == 256 and config.num_epochs == 74
        assert config.optimizer.learning_rate == 1e-2
        assert config.optimizer.momentum == 0.9
        assert config.optimizer.weight_decay == 5e-4
        assert config.model.dropout == 0.5
        assert (config.data.crop, config.data.scale_min, config.data.scale_max) == (
            224,
            256,
            256,
        )

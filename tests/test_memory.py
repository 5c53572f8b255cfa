"""What a device that is too small answers with: the settings that need less."""

import jax
import jax.numpy as jnp
import pytest

from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.memory import (
    OutOfMemory,
    evaluation_advice,
    naming_settings,
    training_advice,
)


@jax.jit
def fill_128_tebibytes() -> jax.Array:
    """More than any machine can address."""
    return jnp.zeros(2**45, jnp.float32)


def config(**settings: object) -> Config:
    return Config(
        model=VGGConfig(name="vgg16"),
        data=DataConfig(dataset="imagenet2012"),
        **settings,  # type: ignore[arg-type]
    )


def test_a_full_device_is_one_line_with_the_settings() -> None:
    advice = training_advice(config(), 8)
    with (
        pytest.raises(OutOfMemory) as raised,
        naming_settings("a training step", advice),
    ):
        fill_128_tebibytes()
    message = str(raised.value)
    assert message.startswith(
        "a training step does not fit into the memory of a cpu; it is smaller with "
        "model.dtype=bfloat16; remat=True; shard_fc=True; accumulate_steps=2, or more; "
        "batch_size=128, or smaller, or more devices (RESOURCE_EXHAUSTED: "
    )
    assert "\n" not in message


def test_another_error_stays_what_it_is() -> None:
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: lost a peer"),
        naming_settings("a training step", ()),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: lost a peer")


def test_advice_is_of_what_can_be_smaller_yet() -> None:
    smallest = config(batch_size=1, remat=True)
    smallest.model.dtype = "bfloat16"
    assert list(training_advice(smallest, 1)) == []
    assert list(evaluation_advice(config(), 3)) == [
        "evaluation.batch_size=32, or smaller"
    ]
    [smaller_images] = evaluation_advice(config(), 1)
    assert smaller_images.startswith("evaluation.scales")

"""What a device that is too small answers with: the settings that need less."""

import jax
import jax.numpy as jnp
import pytest

from vgg_jax import memory
from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.distributed import batch_sharding, make_mesh, replicated
from vgg_jax.memory import (
    OutOfMemory,
    evaluation_advice,
    naming_settings,
    training_advice,
    validate_state_fits,
)
from vgg_jax.training.program import build_program


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
    assert list(evaluation_advice(config(), 1, images_per_device=3)) == [
        "evaluation.batch_size=32, or smaller"
    ]
    few = config()
    few.evaluation.batch_size = 8  # 4 would be 2 for each of 3 devices, as 8 is
    assert list(evaluation_advice(few, 3, images_per_device=2)) == [
        "evaluation.batch_size=3, or smaller"
    ]
    few.evaluation.batch_size = 4
    assert list(evaluation_advice(few, 8, images_per_device=2)) == [
        "evaluation.batch_size=2, or smaller"
    ]
    [smaller_images] = evaluation_advice(config(), 1, images_per_device=1)
    assert smaller_images.startswith("evaluation.scales")


def test_a_network_larger_than_the_machine_is_refused_before_it_is_made() -> None:
    mesh = make_mesh()
    wide = config()
    wide.model.width = 100
    state = build_program(wide, mesh).state
    with pytest.raises(OutOfMemory, match=r"need [\d,]+\.\d GiB, and a cpu has [\d,]+"):
        validate_state_fits(state)


def test_every_device_has_its_part_of_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh()
    shared = jax.ShapeDtypeStruct(
        (mesh.size, 100), jnp.float32, sharding=batch_sharding(mesh)
    )
    whole = jax.ShapeDtypeStruct((100,), jnp.bfloat16, sharding=replicated(mesh))
    monkeypatch.setattr(memory, "_device_memory", lambda: 600)
    validate_state_fits({"fc6": shared, "fc8": whole})
    monkeypatch.setattr(memory, "_device_memory", lambda: 599)
    with pytest.raises(OutOfMemory):
        validate_state_fits({"fc6": shared, "fc8": whole})

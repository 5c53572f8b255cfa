"""A program is made, lowered and compiled from a configuration and a mesh alone."""

import jax
import pytest

from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.training.program import Program
from vgg_jax.training.sharding import make_mesh


def config(**data: float) -> Config:
    return Config(
        model=VGGConfig(name="vgg11", num_classes=10, width=0.05, fc_kernel=1),
        data=DataConfig(
            dataset="folder",
            **{"crop": 32, "scale_min": 32, "scale_max": 32} | data,  # type: ignore
        ),
        evaluation=EvaluationConfig(center_scale=32),
        batch_size=16,
    )


def test_the_train_step_compiles_without_data() -> None:
    program = Program.of(config(), make_mesh())
    compiled = program.train_step.lower(*program.arguments).compile()
    assert "all-reduce" in compiled.as_text()
    state, sums = jax.eval_shape(program.train_step, *program.arguments)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), program.state
    )
    assert sums["loss"].dtype == "float32"


def test_the_batch_has_a_colour_shift_where_colours_are_shifted() -> None:
    shifted = Program.of(config(colour_shift=0.1), make_mesh())
    assert shifted.batch["shift"].shape == (16, 3)
    assert "shift" not in Program.of(config(), make_mesh()).batch


def test_a_crop_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 16x16"):
        Program.of(config(crop=16), make_mesh())

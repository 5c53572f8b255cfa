"""Programs: compiled without data, and the same numbers however they are laid out."""

import dataclasses
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LocalizationConfig,
    NiNConfig,
    VGGConfig,
)
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.tools import init_check, tpu_check
from vgg_jax.tools.programs import PROGRAMS
from vgg_jax.training import program as programs
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.program import Program, build_program, with_choices_for
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.workdir.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("small_vgg")


def config(crop: int = 32, **changes: Any) -> Config:
    """A small VGG; changes are fields of the run, the network or the data."""
    base = Config(
        model=VGGConfig(name="vgg8", num_classes=10, width=0.125, fc_kernel=1),
        data=DataConfig(dataset="folder", crop=crop, scale_min=crop, scale_max=crop),
        evaluation=EvaluationConfig(center_scale=crop),
        batch_size=16,
    )
    for group in ("model", "data"):
        owner = getattr(base, group)
        own = {f.name for f in dataclasses.fields(owner)} & changes.keys()
        values = {name: changes.pop(name) for name in own}
        setattr(base, group, dataclasses.replace(owner, **values))
    return dataclasses.replace(base, **changes)


def batch(program: Program, step: int) -> dict[str, np.ndarray]:
    """What `program` takes, with two corrupt images in its second step."""
    rng = np.random.default_rng(step)
    size, *rest = program.batch["image"].shape
    weights = np.ones(size, np.float32)
    weights[[1, 6]] = step != 1
    return {
        "image": rng.integers(0, 256, (size, *rest), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "weight": weights,
    }


def losses(devices: int, steps: int = 4, **changes: Any) -> list[float]:
    """Loss, gradient's norm and validation loss of steps with dropout."""
    mesh = make_mesh(jax.devices()[:devices])
    program = build_program(config(**changes), mesh)
    key = jax.random.key(1)
    state, found = program.init(jax.random.key(0)), []
    for step in range(steps):
        rows = shard_batch(mesh, batch(program, step))
        state, sums = program.train_step(state, rows, key)
        found += [sums["loss"] / sums["weight"], sums["gradient_norm"]]
    rows = shard_batch(mesh, batch(program, 9))
    extras = {name: rows[name] for name in ("label", "weight")}
    head = ExampleMetrics(CLASSIFICATION.objective, with_boxes=False)
    of_examples = program.network(state).run(head, rows["image"], None, extras)
    sums = {name: values.sum() for name, values in of_examples.items()}
    return [float(value) for value in (*found, sums["loss"] / sums["weight"])]


@functools.cache
def expected() -> list[float]:
    return losses(1)


def compiled(devices: int = 8, **changes: Any) -> Any:
    program = build_program(config(**changes), make_mesh(jax.devices()[:devices]))
    return program.train_step.lower(*program.arguments).compile()


COLLECTIVE = re.compile(
    r" = (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(text: str) -> list[int]:
    """The sizes, in numbers, of the arrays that devices send one another."""
    sizes = []
    for types in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", types):
            sizes.append(int(np.prod([int(n) for n in shape.split(",") if n])))
    return sizes


def test_the_train_step_compiles_without_data() -> None:
    program = build_program(config(), make_mesh())
    state, sums = jax.eval_shape(program.train_step, *program.arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, program.state)
    assert sums["loss"].dtype == "float32"
    assert collectives(program.train_step.lower(*program.arguments).compile().as_text())


def test_the_batch_has_a_color_shift_where_colors_are_shifted() -> None:
    shifted = build_program(config(color_shift=0.1), make_mesh())
    assert shifted.batch["shift"].shape == (16, 3)
    assert "shift" not in build_program(config(), make_mesh()).batch


def test_a_crop_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 16x16"):
        build_program(config(crop=16), make_mesh())


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_without_data_need_the_number_of_classes(program: str) -> None:
    without = config(num_classes=None)
    for work in (
        lambda: build_program(without, make_mesh()),
        lambda: init_check.compare_inits(without),
        lambda: tpu_check.compile_program(without, program, "v5e:2x4", make_mesh()),
    ):
        with pytest.raises(ValueError, match=r"set --config\.model\.num_classes=N"):
            work()


def test_devices_parts_and_shards_give_the_same_losses() -> None:
    changes = {"shard_fc": True, "accumulate_steps": 4, "remat": True}
    np.testing.assert_allclose(losses(4, **changes), expected(), rtol=1e-5)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_groups_of_devices_give_the_same_losses(accumulate_steps: int) -> None:
    narrow = {"fc_features": 128}
    changes = narrow | {"shard_fc": True, "accumulate_steps": accumulate_steps}
    state = build_program(config(**changes), make_mesh()).state
    sharding = state.params["fc6"]["kernel"].sharding
    assert dict(sharding.mesh.shape) == {"groups": 2, "members": 4}
    np.testing.assert_allclose(losses(8, **changes), losses(1, **narrow), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("shard_fc", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_every_layout_gives_the_same_losses(
    devices: int, shard_fc: bool, accumulate_steps: int
) -> None:
    found = losses(devices, shard_fc=shard_fc, accumulate_steps=accumulate_steps)
    np.testing.assert_allclose(found, expected(), rtol=1e-5)


@pytest.mark.slow
def test_a_batch_in_many_parts_on_one_device() -> None:
    found = losses(1, accumulate_steps=8, remat=True)
    np.testing.assert_allclose(found, expected(), rtol=1e-5)


@pytest.mark.slow
def test_accumulated_batch_norm_takes_the_same_images_on_any_number_of_devices() -> (
    None
):
    parts = {"name": "vgg11_bn", "accumulate_steps": 2}
    one = losses(1, steps=2, **parts)
    np.testing.assert_allclose(losses(4, steps=2, **parts), one, rtol=1e-3)
    assert abs(losses(1, steps=2, name="vgg11_bn")[0] - one[0]) > 1e-4


def test_sharded_layers_send_activations_in_place_of_gradients() -> None:
    # fc6 has as many inputs as the paper's, relative to its outputs.
    wide = {"crop": 64, "fc_kernel": 2, "fc_features": 8192}
    layers = build_program(config(**wide), make_mesh()).state.params
    smallest = min(layers[name]["kernel"].size for name in ("fc6", "fc7"))
    assert max(collectives(compiled(**wide).as_text())) >= smallest
    for steps in (1, 2):
        sent = compiled(shard_fc=True, accumulate_steps=steps, **wide).as_text()
        convolutions = layers["conv5_1"]["kernel"].size
        activations = 16 // steps * 1024
        assert max(collectives(sent)) <= max(convolutions, activations) < smallest


@pytest.mark.parametrize(("shard_fc", "count"), [(False, 0), (True, 12)])
def test_inputs_of_sharded_layers_are_placed(shard_fc: bool, count: int) -> None:
    """Forward, two for fc6 and fc7 each, one for fc8 and for the loss; and back."""
    program = build_program(config(shard_fc=shard_fc), make_mesh())
    text = program.train_step.lower(*program.arguments).as_text()
    assert text.count("sdy.sharding_constraint") == count


def test_parameters_and_momentum_of_sharded_layers_lie_together() -> None:
    state = build_program(config(shard_fc=True), make_mesh()).state
    momentum = optax.tree.get(state.opt_state, "trace")
    for name, parameters in state.params.items():
        for kind, array in parameters.items():
            assert array.sharding == momentum[name][kind].sharding
            here = np.prod(array.sharding.shard_shape(array.shape))
            parts = 8 if name in ("fc6", "fc7", "fc8") else 1
            if (name, kind) != ("fc8", "bias"):
                assert here * parts == array.size, (name, kind)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            VGGConfig(name="vgg11", num_classes=10, fc_features=51, fc_kernel=1),
            "fc6 and fc7 of widths that some of 8",
        ),
        (NiNConfig(name="nin_cifar", num_classes=10), "nin_cifar with this head"),
        (
            VGGConfig(name="vgg11", num_classes=10, head="global_pool"),
            "shard_fc is for networks with fc6, fc7, fc8",
        ),
    ],
)
def test_layers_that_cannot_be_sharded_are_named(model: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build_program(config(model=model, shard_fc=True), make_mesh())


def test_layers_that_rest_and_keep_their_maps_are_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = config(shard_fc=True)
    kept.optimizer.trained_layers, kept.optimizer.keep_maps = ("fc8",), True
    with pytest.raises(ValueError, match="shard_fc of False or None with it, got True"):
        build_program(kept, make_mesh())
    monkeypatch.setattr(programs, "platform_of", lambda mesh: "tpu")
    kept.shard_fc = None
    assert with_choices_for(make_mesh(), kept).shard_fc is False


LEFT_TO_DEVICES = {"shard_fc": None, "dtype": None}


@pytest.mark.parametrize(
    ("platform", "devices", "changes", "dtype", "shard_fc"),
    [
        ("tpu", 8, {}, "bfloat16", True),
        ("tpu", 1, {}, "bfloat16", False),
        ("tpu", 8, {"fc_features": 40}, "bfloat16", False),
        ("tpu", 8, {"head": "global_pool"}, "bfloat16", False),
        ("tpu", 8, {"dtype": "float32", "shard_fc": False}, "float32", False),
        ("cpu", 8, {}, "float32", False),
        ("gpu", 8, {"shard_fc": True}, "float32", True),
    ],
)
def test_what_is_left_to_the_devices(
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    devices: int,
    changes: dict[str, Any],
    dtype: str,
    shard_fc: bool,
) -> None:
    monkeypatch.setattr(programs, "platform_of", lambda mesh: platform)
    mesh = make_mesh(jax.devices()[:devices])
    chosen = with_choices_for(mesh, config(**LEFT_TO_DEVICES | changes))
    assert (chosen.model.dtype, chosen.shard_fc) == (dtype, shard_fc)
    assert with_choices_for(mesh, chosen) == chosen


def test_a_program_takes_what_is_left_to_the_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "platform_of", lambda mesh: "tpu")
    of_tpu = build_program(config(**LEFT_TO_DEVICES), make_mesh())
    assert "bf16[" in str(jax.make_jaxpr(of_tpu.train_step)(*of_tpu.arguments))
    assert not of_tpu.state.params["fc6"]["kernel"].sharding.is_fully_replicated


def test_memory_falls_with_accumulation() -> None:
    small = {"devices": 1, "crop": 64, "fc_kernel": 2, "fc_features": 64}
    plain, accumulated = (
        compiled(**small, **changes).memory_analysis().temp_size_in_bytes
        for changes in ({}, {"accumulate_steps": 4})
    )
    assert accumulated < 0.5 * plain


def test_remat_keeps_the_input_of_each_stage_for_the_gradient() -> None:
    def kept(**changes: Any) -> int:
        """Bytes that the forward pass leaves to the backward pass."""
        settings = config(name="vgg11", **changes)
        mesh = make_mesh(jax.devices()[:1])
        program = build_program(settings, mesh)
        forward = program.train_step.__wrapped__.keywords["forward"]

        def pass_forward(params: Any, images: Any) -> Any:
            keys = jax.random.split(jax.random.key(0), 16)
            return jax.vjp(
                lambda p: forward(p, {}, {"image": images}, keys=keys)[0], params
            )[1]

        residuals = jax.eval_shape(
            pass_forward, program.state.params, program.batch["image"]
        )
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(residuals))

    assert kept(remat=True) < 0.6 * kept()


def test_bfloat16_is_of_the_computation_alone() -> None:
    program = build_program(config(dtype="bfloat16"), make_mesh())
    kinds = {str(a.dtype) for a in jax.tree.leaves((program.state.params,))}
    assert kinds == {"float32"}
    _, sums = jax.eval_shape(program.train_step, *program.arguments)
    assert {str(a.dtype) for a in sums.values()} == {"float32"}
    half, whole = losses(1, steps=1, dtype="bfloat16")[0], expected()[0]
    assert half != whole
    np.testing.assert_allclose(half, whole, rtol=0.01)


@pytest.mark.parametrize(
    "shard_fc", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_a_checkpoint_goes_on_on_another_number_of_devices(
    tmp_path: Any, shard_fc: bool
) -> None:
    key, metric = jax.random.key(1), "validation_top5_error"
    before = build_program(config(shard_fc=not shard_fc), make_mesh(jax.devices()[:4]))
    mesh = make_mesh()
    after = build_program(config(shard_fc=shard_fc), mesh)
    rows = batch(before, 0)
    state, _ = before.train_step(
        before.init(jax.random.key(0)),
        shard_batch(make_mesh(jax.devices()[:4]), rows),
        key,
    )
    with Checkpoints(tmp_path, metric, read_only=False) as checkpoints:
        checkpoints.save(state, Plateau(), None)
        checkpoints.wait()
        restored, _ = checkpoints.restore(after.state, 1)
    chex.assert_trees_all_equal(
        jax.device_get(restored.params), jax.device_get(state.params)
    )
    shardings = jax.tree.map(lambda a: a.sharding, restored.params)
    assert shardings == jax.tree.map(lambda a: a.sharding, after.state.params)
    _, one = after.train_step(restored, shard_batch(mesh, rows), key)
    _, two = before.train_step(
        state, shard_batch(make_mesh(jax.devices()[:4]), rows), key
    )
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    assert jnp.isfinite(one["loss"])


def test_a_network_of_boxes_learns_from_boxes() -> None:
    boxes = config()
    boxes.localization = LocalizationConfig(regression="pcr")
    boxes.optimizer.metric = "box_error"
    boxes.model.num_classes = 40
    program = build_program(boxes, make_mesh())
    assert program.batch["box"].shape == (16, 4)
    _, sums = jax.eval_shape(program.train_step, *program.arguments)
    assert {"loss", "box_error", "weight"} < sums.keys()
    assert "box" not in build_program(config(), make_mesh()).batch

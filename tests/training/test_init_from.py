"""A curriculum end to end with tiny networks: order, weights taken, stops, resumes."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from vgg_jax.config import Config, Curriculum
from vgg_jax.distributed import make_mesh
from vgg_jax.training.init_from import (
    PRE_INITIALIZED,
    layers_taken,
    source_folder,
    take_weights,
    unfinished_runs,
)
from vgg_jax.training.loop import train
from vgg_jax.training.metrics import MetricWriter
from vgg_jax.training.program import build_program
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.workdir.checkpoint import METADATA, Checkpoints
from vgg_jax.training.workdir.facts import claim, is_finished, mark_finished


def train_all(config: Config | Curriculum, workdir: Path) -> list[str]:
    """As train.py does; the runs that it trained, up to one that was stopped."""
    trained = []
    for run, folder in unfinished_runs(config, workdir):
        trained.append(folder.name)
        if train(run, folder) is not None:
            break
    return trained


@pytest.fixture
def curriculum(tiny_config: Any) -> Curriculum:
    b = dataclasses.replace(tiny_config("vgg13"), init_from="vgg11")
    b_fine = dataclasses.replace(tiny_config("vgg13", rate=1e-3), init_from="vgg13")
    b_fine.data = dataclasses.replace(b_fine.data, scale_max=40)
    return Curriculum(runs={"vgg11": tiny_config(), "vgg13": b, "vgg13_fine": b_fine})


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_curriculum_stopped_midway_goes_on(
    curriculum: Curriculum,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = MetricWriter.write

    def stop_in_the_second_run(self: Any, step: int, values: Any) -> None:
        write(self, step, values)
        if step == 5 and (tmp_path / "vgg13").exists():
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", stop_in_the_second_run)
        assert train_all(curriculum, tmp_path) == ["vgg11", "vgg13"]
    assert is_finished(tmp_path / "vgg11") and not is_finished(tmp_path / "vgg13")
    printed, warnings = capsys.readouterr()
    assert warnings == ""
    assert "run 1 of 3: vgg11" in printed and "run 2 of 3: vgg13" in printed
    assert "conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8; random" in printed

    # The run that it started from is not asked any more.
    shutil.rmtree(tmp_path / "vgg11" / "checkpoints")
    assert train_all(curriculum, tmp_path) == ["vgg13", "vgg13_fine"]
    printed = capsys.readouterr().out
    assert "run 1 of 3: vgg11 is finished already" in printed
    assert "from the start" in printed  # the third run; the second goes on
    assert printed.count("from the start") == 1
    assert "all 3 runs are finished" in printed
    assert train_all(curriculum, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("vgg13", "vgg11", PRE_INITIALIZED),
        ("vgg16_c", "vgg11", PRE_INITIALIZED),
        ("vgg16", "vgg11", PRE_INITIALIZED),
        ("vgg19", "vgg11", PRE_INITIALIZED),
        ("vgg11", "vgg11", None),
        ("vgg16_bn", "vgg16_bn", None),
    ],
)
def test_which_layers_are_taken(
    name: str, source: str, expected: tuple[str, ...] | None, tiny_config: Any
) -> None:
    ours, theirs = tiny_config(name), tiny_config(source)
    # At full width: the shapes of Table 1 fit, not only those of a small network.
    ours.model.width = theirs.model.width = 1.0
    taken = layers_taken(ours, theirs)
    if expected is None:
        assert {"conv1_1", "conv5_2", "fc8"} < set(taken)
        assert ("bn1_1" in taken) == name.endswith("_bn")
    else:
        assert sorted(taken) == sorted(expected)


def test_other_classes_leave_the_last_layer_random(tiny_config: Any) -> None:
    ours, theirs = tiny_config(), tiny_config()
    theirs.model.num_classes = 1000
    assert set(layers_taken(theirs, theirs)) - set(layers_taken(ours, theirs)) == {
        "fc8"
    }


def test_layers_of_other_shapes_are_refused_with_both_sides(tiny_config: Any) -> None:
    ours, theirs = tiny_config("vgg13"), tiny_config("vgg11")
    theirs.model.width = 0.1
    with pytest.raises(ValueError, match=r"conv1_1: expected .*\(3, 3, 1, 3\).* got"):
        layers_taken(ours, theirs)
    theirs.model.num_classes = 1000  # even then: nothing is left to take
    with pytest.raises(ValueError, match="conv3_1"):
        layers_taken(ours, theirs)


def test_the_best_weights_are_taken_and_the_rest_are_random(
    tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, config = tiny_config("vgg11"), tiny_config("vgg13")
    (tmp_path / "vgg11").mkdir()
    claim(tmp_path / "vgg11", source)
    mesh = make_mesh()
    init = build_program(source, mesh).init
    metric = "validation_top1_error"
    with Checkpoints(tmp_path / "vgg11", metric, read_only=False) as checkpoints:
        for step, error in ((1, 0.9), (2, 0.1), (3, 0.2)):
            state = dataclasses.replace(
                init(jax.random.key(step)), step=jnp.int32(step)
            )
            if step == 2:
                best = jax.device_get(state.params)
            checkpoints.save(state, Plateau(), {metric: error})
    config.init_from = "vgg11"
    fresh = build_program(config, mesh).init(jax.random.key(0))
    state = take_weights(fresh, config, tmp_path / "vgg13")
    assert set(state.params) == set(fresh.params)
    for name, variables in state.params.items():
        there = best if name in PRE_INITIALIZED else jax.device_get(fresh.params)
        chex.assert_trees_all_equal(jax.device_get(variables), there[name])
        sharding = fresh.params[name]["kernel"].sharding
        assert variables["kernel"].sharding == sharding
    printed = capsys.readouterr().out
    assert "from step 2 of" in printed
    assert f"{', '.join(PRE_INITIALIZED)}; random (he): conv1_2, conv2_2," in printed


def test_a_run_that_is_not_there_or_not_finished_says_what_to_do(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config("vgg13"), init_from="vgg11")
    with pytest.raises(ValueError, match=r"is not there\. Train it first: ") as error:
        train(config, tmp_path / "vgg13")
    command = f"train.py --config configs/vgg11.py --workdir {tmp_path}/vgg11"
    assert command in str(error.value)
    assert not (tmp_path / "vgg13").exists()
    checkpoint = tmp_path / "vgg11" / "checkpoints" / "5"
    checkpoint.mkdir(parents=True)
    (checkpoint / METADATA).touch()
    with pytest.raises(ValueError, match="is at step 5, not at its end"):
        train(config, tmp_path / "vgg13")


def test_where_init_from_looks() -> None:
    def folder(start: str, workdir: str) -> Path:
        config = Config(model=None, data=None, init_from=start)  # type: ignore[arg-type]
        return source_folder(config, Path(workdir))

    assert folder("vgg11", "runs/vgg16") == Path("runs/vgg11")
    assert folder("../old/vgg11", "runs/vgg16") == Path("old/vgg11")
    assert folder("/old/vgg11", "runs/vgg16") == Path("/old/vgg11")
    assert folder("vgg11", "/a/b/vgg16") == Path("/a/b/vgg11")


def test_a_curriculum_is_checked_before_its_first_run(
    curriculum: Curriculum, tmp_path: Path
) -> None:
    swapped = Curriculum(runs=dict(reversed(curriculum.runs.items())))
    with pytest.raises(ValueError, match="expected a run before it, one of none"):
        next(unfinished_runs(swapped, tmp_path))
    curriculum.runs["vgg13_fine"].batch_size = 7
    with pytest.raises(ValueError, match="multiple of 8"):
        next(unfinished_runs(curriculum, tmp_path))


def test_one_configuration_is_one_run_in_its_own_folder(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config()
    assert list(unfinished_runs(config, tmp_path)) == [(config, tmp_path)]


def test_a_run_is_skipped_if_it_finished_with_the_same_settings(
    curriculum: Curriculum, tmp_path: Path
) -> None:
    def left() -> list[str]:
        return [folder.name for _, folder in unfinished_runs(curriculum, tmp_path)]

    first = tmp_path / "vgg11"
    first.mkdir()
    claim(first, curriculum.runs["vgg11"])
    assert left() == ["vgg11", "vgg13", "vgg13_fine"]
    mark_finished(first, True)
    assert left() == ["vgg13", "vgg13_fine"]
    curriculum.runs["vgg11"].num_epochs = 99
    assert left() == ["vgg11", "vgg13", "vgg13_fine"]
    mark_finished(first, False)
    assert not is_finished(first)


def test_a_run_that_left_its_classes_to_the_data_is_skipped_too(
    tiny_config: Any, tmp_path: Path
) -> None:
    stored, run = tiny_config(), tiny_config()
    (tmp_path / "vgg11").mkdir()
    claim(tmp_path / "vgg11", stored)
    mark_finished(tmp_path / "vgg11", True)
    run.model.num_classes = None
    assert not list(unfinished_runs(Curriculum(runs={"vgg11": run}), tmp_path))

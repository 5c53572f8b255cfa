"""The run: what it notices before it begins, and at its last step."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from vgg_jax import training
from vgg_jax.config import Config, LocalizationConfig
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.color import computed_path
from vgg_jax.data.on_device import put_on_devices
from vgg_jax.data.sources import open_training
from vgg_jax.distributed import batch_sharding, make_mesh, replicated
from vgg_jax.inference.passes import over_source
from vgg_jax.memory import OutOfMemory
from vgg_jax.models.layers import FullyConnected, Layer
from vgg_jax.models.measure import summary
from vgg_jax.training import loop
from vgg_jax.training.loop import Trainer, train
from vgg_jax.training.metrics import (
    MetricWriter,
    TrainingDiverged,
    summarize_training,
)
from vgg_jax.training.optimizer import learning_rate, make_optimizer
from vgg_jax.training.program import Program, abstract_model
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState, jit_train_step
from vgg_jax.training.workdir.checkpoint import METADATA, Checkpoints, saved_steps
from vgg_jax.training.workdir.facts import (
    WorkdirMismatch,
    claim,
    is_finished,
    read_config,
)
from vgg_jax.training.workdir.lock import WorkdirHeld, WorkdirLock, WorkdirLost


@pytest.fixture
def tiny_config(tiny_config: Any, small_vgg: str) -> Any:
    """The configuration of a smaller network."""
    return functools.partial(tiny_config, small_vgg)


@pytest.mark.usefixtures("one_device")
def test_a_network_broken_by_the_last_step_has_not_finished(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config(rate=4e9)
    config.num_epochs = 0.01  # one step, whose own loss is still a number
    with pytest.raises(TrainingDiverged, match=r"loss after step 1.*none yet"):
        train(config, tmp_path)
    assert not is_finished(tmp_path)


@pytest.mark.usefixtures("one_device")
def test_a_thread_can_import_the_training_and_run_it(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So it is in a worker of Ray.
    config = tiny_config()
    config.num_epochs = 0.01
    with ThreadPoolExecutor() as threads:
        stopped = threads.submit(training.train, config, str(tmp_path / "run"))
        assert stopped.result() is None
    assert is_finished(tmp_path / "run")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(ValueError, match="Kubernetes started this process as one of"):
        training.train(config, tmp_path / "other")


def test_a_missing_test_part_is_told_before_training(
    shapes: Path, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shapes / "train", tmp_path / "pictures" / "train")
    config = tiny_config()
    config.data.data_dir = str(tmp_path / "pictures")
    Trainer(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert "warning: nothing for eval.py" in said and "pictures/test" in said
    Trainer(tiny_config(), tmp_path / "other")
    assert capsys.readouterr().err == ""


def begin(config: Config, workdir: Path) -> Trainer:
    """A run that has its folder and takes no step."""
    trainer = Trainer(config, workdir)
    with WorkdirLock(workdir):
        trainer.claim_workdir()
    return trainer


def test_a_run_does_not_go_on_with_other_data(
    shapes: Path, tiny_config: Any, tmp_path: Path
) -> None:
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(shapes, pictures)
    config = tiny_config()
    config.data.data_dir = str(pictures)
    config.data.color_shift, config.data.color_pca = 0.1, "computed"
    axes = computed_path(config.data)
    axes.write_text(json.dumps({"axes": [[30.0]]}))
    begin(config, run)
    axes.write_text(json.dumps({"axes": [[31.0]]}))
    begin(config, run)  # nothing is trained yet
    (run / "checkpoints" / "5").mkdir(parents=True)
    (run / "checkpoints" / "5" / METADATA).touch()
    begin(config, run)
    axes.write_text(json.dumps({"axes": [[30.0]]}))
    with pytest.raises(WorkdirMismatch, match=r"shift: \[\[31.0\]\] there, \[\[30.0"):
        begin(config, run)
    axes.write_text(json.dumps({"axes": [[31.0]]}))
    bars = pictures / "train" / "bar"
    for i in range(30):
        shutil.copy(bars / "0.png", bars / f"another{i}.png")
    with pytest.raises(WorkdirMismatch) as error:
        begin(config, run)
    assert "images to train on: " in str(error.value)
    assert "images to validate with: " in str(error.value)
    (run / "data.json").unlink()
    begin(config, run)


@dataclasses.dataclass
class LinearNetwork:
    """What `Network` is to a pass over a set, for one layer."""

    forward: Callable[..., tuple[jax.Array, Any]]
    params: Any
    channels: int = 1
    layers: tuple[Layer, ...] = (FullyConnected("fc8", 3, 32),)

    def place(self, mesh: Mesh) -> "LinearNetwork":
        return self

    def run(self, head: Any, images: Any, sizes: Any, extras: Any) -> Any:
        def model(images: jax.Array) -> jax.Array:
            return self.forward(self.params, {}, {"image": images})[0]

        return head(model, images, sizes, extras)


def linear_program(config: Config, mesh: Mesh) -> Program:
    """A program whose network is one layer, compiled in a moment."""
    optimizer = make_optimizer(config.optimizer)

    def init(key: jax.Array) -> TrainState:
        kernel = jax.random.normal(key, (32 * 32, 3)) / 32
        params = {"fc8": {"kernel": kernel, "bias": jnp.zeros(3)}}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats={},
            opt_state=optimizer.init(params),
        )

    def forward(
        params: Any, batch_stats: Any, batch: Any, *, keys: Any = None
    ) -> tuple[jax.Array, Any]:
        images = batch["image"].reshape(-1, 32 * 32) / 255
        return images @ params["fc8"]["kernel"] + params["fc8"]["bias"], batch_stats

    forward.trained_layers = ()  # type: ignore
    state = jax.eval_shape(init, jax.random.key(0))
    shardings = jax.tree.map(lambda _: replicated(mesh), state)

    size = config.batch_size
    fields = {
        "image": ((size, 32, 32, 1), jnp.uint8),
        "label": ((size,), jnp.int32),
        "weight": ((size,), jnp.float32),
    }
    key = jax.eval_shape(jax.random.key, 0)
    return Program(
        init=jax.jit(init, out_shardings=shardings),
        train_step=jit_train_step(forward, optimizer, 1, shardings),  # type: ignore
        network=lambda state: LinearNetwork(forward, state.params),  # type: ignore
        state=jax.tree.map(
            lambda a, sharding: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=sharding
            ),
            state,
            shardings,
        ),
        batch={
            name: jax.ShapeDtypeStruct(*shape, sharding=batch_sharding(mesh))
            for name, shape in fields.items()
        },
        key=jax.ShapeDtypeStruct((), key.dtype, sharding=replicated(mesh)),
    )


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("sgd", "step"), ("lars", "cosine"), ("adamw", "plateau")],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    optimizer: str,
    schedule: str,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(rate=1e-3)
    config.num_epochs = 4
    for name, value in {
        "name": optimizer,
        "schedule": schedule,
        "warmup_epochs": 3,  # of about three steps each: stopped inside of it
        "step_epochs": 0.7,
        "plateau_patience": 1,
        "plateau_min_delta": 0.9,
        "plateau_drops": 9,
    }.items():
        setattr(config.optimizer, name, value)
    program = linear_program(config, make_mesh(jax.devices()[:1]))
    monkeypatch.setattr(loop, "build_program", lambda config, mesh: program)
    write = MetricWriter.write

    def stop_at_step_5(self: MetricWriter, step: int, values: Any) -> None:
        write(self, step, values)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    def stop_in_validation(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return over_source(*arguments, **keywords)

    assert train(config, tmp_path / "whole") is None
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", stop_at_step_5)
        assert train(config, tmp_path / "stopped") is signal.SIGINT
        patch.setattr(loop, "over_source", stop_in_validation)
        assert train(config, tmp_path / "stopped") is signal.SIGTERM
        assert saved_steps(tmp_path / "stopped") == [9]
        # The next start has that validation to do, and nothing yet to save.
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
        assert saved_steps(tmp_path / "stopped") == [9]
    assert train(config, tmp_path / "stopped") is None
    assert saved_steps(tmp_path / "stopped") == saved_steps(tmp_path / "whole")

    ends, errors = [], []
    for name in ("whole", "stopped"):
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        last = json.loads(rows[-2])
        errors.append([row for row in rows if "validation_loss" in row])
        metric = "validation_top1_error"
        with Checkpoints(tmp_path / name, metric, read_only=True) as checkpoints:
            latest = checkpoints.latest_step
            assert latest == last["step"] > 6
            state, plateau = checkpoints.restore(program.state, latest)
        assert learning_rate(state.opt_state) == np.float32(last["learning_rate"])
        ends.append((jax.device_get(state), plateau, last["learning_rate"]))
    assert errors[0] == errors[1] and len(errors[0]) == 4
    chex.assert_trees_all_equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]
    assert ends[0][2] != 1e-3  # the schedule has changed it
    assert (ends[0][1] == Plateau()) == (schedule != "plateau")


def test_crops_cut_on_the_devices_train_to_the_same_bits(
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(rate=1e-3)
    config.data.scale_max = 40
    program = linear_program(config, make_mesh())
    monkeypatch.setattr(loop, "build_program", lambda config, mesh: program)
    assert train(config, tmp_path / "host") is None
    with monkeypatch.context() as patch:
        at_step_5(lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        assert train(config, tmp_path / "device") is signal.SIGINT
    assert "kept the images on the devices" not in capsys.readouterr().out
    config.data.on_device = True
    assert train(config, tmp_path / "device") is None
    assert "kept the images on the devices" in capsys.readouterr().out
    ends, errors = [], []
    for name in ("host", "device"):
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        errors.append([row for row in rows if "validation_loss" in row])
        metric = "validation_top1_error"
        with Checkpoints(tmp_path / name, metric, read_only=True) as checkpoints:
            latest = checkpoints.latest_step
            assert latest is not None and latest > 10
            ends.append(jax.device_get(checkpoints.restore(program.state, latest)))
    assert errors[0] == errors[1] and len(errors[0]) == 2
    chex.assert_trees_all_equal(*(state for state, _ in ends))


@pytest.mark.parametrize("corrupt", ["raise", "skip"])
def test_images_that_come_to_the_devices_meanwhile_change_no_bit(
    linear_training: Config,
    corrupt: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = linear_training
    config.data.scale_max, config.data.on_corrupt_image = 40, corrupt
    assert train(config, tmp_path / "host") is None
    assert "kept the images" not in capsys.readouterr().out
    may_begin, is_done = threading.Event(), threading.Event()
    if corrupt == "skip":
        may_begin.set()  # training waits for them

    def put_later(*arguments: Any, **keywords: Any) -> Any:
        assert may_begin.wait(60)
        try:
            return put_on_devices(*arguments, **keywords)
        finally:
            is_done.set()

    def come() -> None:
        may_begin.set()
        assert is_done.wait(60)

    monkeypatch.setattr(loop, "LONG_RUN", 1)
    monkeypatch.setattr(loop, "put_on_devices", put_later)
    at_step_5(come, monkeypatch)
    config.onednn = False
    assert train(config, tmp_path / "device") is None
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    place = lines.index(["kept", "the"])
    assert (["step", "5/"] in [[a, b[:2]] for a, b in lines[:place]]) == (
        corrupt == "raise"
    )
    ends = []
    for name in ("host", "device"):
        with Checkpoints(
            tmp_path / name, "validation_top1_error", read_only=True
        ) as checkpoints:
            latest = checkpoints.latest_step
            assert latest is not None and latest > 10
            state = loop.build_program(config, make_mesh()).state
            ends.append(jax.device_get(checkpoints.restore(state, latest)[0]))
    chex.assert_trees_all_equal(*ends)


def test_a_set_that_cannot_be_decoded_ends_the_run_where_it_is_found(
    linear_training: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: Any, **keywords: Any) -> None:
        raise CorruptImage("picture 7 is torn")

    monkeypatch.setattr(loop, "LONG_RUN", 1)
    monkeypatch.setattr(loop, "put_on_devices", damaged)
    with pytest.raises(CorruptImage, match="picture 7"):
        train(linear_training, tmp_path)


def test_crops_with_boxes_are_not_cut_on_the_devices(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config()
    config.data.on_device = True
    config.localization = LocalizationConfig()
    with pytest.raises(ValueError, match=r"not for training with boxes .* to False"):
        Trainer(config, tmp_path)


@pytest.fixture
def linear_training(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, one_device: None
) -> Config:
    """The configuration of a training whose network is one layer."""
    config = tiny_config(rate=1e-3)
    program = linear_program(config, make_mesh(jax.devices()[:1]))
    monkeypatch.setattr(loop, "build_program", lambda config, mesh: program)
    return config


@pytest.mark.parametrize(
    ("steps", "wanted", "is_used"),
    [(20, None, True), (19, None, False), (19, True, True), (20, False, False)],
)
def test_a_long_run_has_its_convolutions_computed_by_onednn(
    linear_training: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    wanted: bool | None,
    is_used: bool,
) -> None:
    monkeypatch.setattr(loop, "LONG_RUN", 20 * linear_training.batch_size)
    image = summary(abstract_model(linear_training), linear_training.data.crop)
    work = image.multiply_adds * linear_training.batch_size
    monkeypatch.setattr(loop, "FIRST_WORK", 18.5 * work)
    options = {"xla_cpu_enable_fast_math": False}
    monkeypatch.setattr(loop, "onednn_options", lambda dtype: options)
    config = dataclasses.replace(linear_training, onednn=wanted)
    examples = len(open_training(config.data)[0])
    config.num_epochs = (steps - 0.5) * config.batch_size / examples
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.timetable.total_steps == steps
    # The 19 steps of the run that has so few are all taken before.
    assert trainer.compiler_options == (options if is_used and steps == 20 else {})
    assert trainer.first_steps == (19 if is_used else 0)
    with Checkpoints(trainer.workdir, "validation_loss", read_only=True) as checkpoints:
        trainer._start(checkpoints)
    said = "convolutions by oneDNN" in capsys.readouterr().out
    assert said == bool(trainer.compiler_options)


def at_step_5(action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Does something when the line of step 5 has been written."""
    write = MetricWriter.write

    def write_and_act(self: MetricWriter, step: int, values: Any) -> None:
        write(self, step, values)
        if step == 5:
            action()

    patch.setattr(MetricWriter, "write", write_and_act)


def test_a_second_training_in_a_workdir_is_refused(
    linear_training: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = dataclasses.replace(linear_training, num_epochs=9)
    refused = []

    def train_too() -> None:
        with pytest.raises(WorkdirHeld) as error:
            train(longer, tmp_path)
        refused.append(str(error.value))

    at_step_5(train_too, monkeypatch)
    assert train(linear_training, tmp_path) is None
    (message,) = refused
    assert f"process {os.getpid()} on host " in message and str(tmp_path) in message
    assert read_config(tmp_path).num_epochs == linear_training.num_epochs
    assert not (tmp_path / "lock").exists()


def test_of_two_that_begin_at_once_the_folder_is_one_run_s(
    linear_training: Config, tmp_path: Path
) -> None:
    """Both have seen an empty folder; what it says of the data is the first one's."""
    first, second = (
        Trainer(linear_training, tmp_path),
        Trainer(linear_training, tmp_path),
    )
    second.facts |= {"images to train on": 3}
    assert first.run() is None
    with pytest.raises(WorkdirMismatch, match=r"images to train on: .* there, 3 now"):
        second.run()
    third = dataclasses.replace(linear_training, batch_size=4)
    second.config = third
    second.facts = first.facts
    with pytest.raises(WorkdirMismatch, match=r"batch_size: .* there, 4 now"):
        second.run()
    assert read_config(tmp_path) == first.config


def test_a_workdir_that_vanishes_stops_the_run_and_is_not_made_anew(
    linear_training: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, away = tmp_path / "run", tmp_path / "away"
    with monkeypatch.context() as patch:
        at_step_5(lambda: workdir.rename(away), patch)
        with pytest.raises(WorkdirLost, match=f"{workdir} is gone"):
            train(linear_training, workdir)
    assert not workdir.exists()
    away.rename(workdir)
    assert train(linear_training, workdir) is None


def test_a_run_goes_on_from_the_newest_intact_checkpoint(
    linear_training: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is trained again is what was trained before; so are the metrics."""

    def worse_and_worse(self: Trainer, state: TrainState, step: int, _: Any) -> Any:
        names = ("loss", "top1_error", "top5_error")
        return {f"validation_{name}": step / 100 for name in names}, None

    monkeypatch.setattr(Trainer, "_validate", worse_and_worse)
    ends = []
    for name in ("whole", "damaged"):
        assert train(linear_training, tmp_path / name) is None
    steps = saved_steps(tmp_path / "damaged")
    assert len(steps) == 2  # the best is not the latest
    folder = tmp_path / "damaged" / "checkpoints"
    for path in (folder / str(steps[-1]) / "params").rglob("d/*"):
        path.write_bytes(b"")
    capsys.readouterr()
    assert train(linear_training, tmp_path / "damaged") is None
    printed = capsys.readouterr()
    assert f"checkpoint {folder / str(steps[-1])} is damaged" in printed.err
    assert f"step {steps[0]} to " in printed.out
    for name in ("whole", "damaged"):
        assert saved_steps(tmp_path / name) == steps
        with Checkpoints(
            tmp_path / name, "validation_top1_error", read_only=True
        ) as checkpoints:
            restored = checkpoints.restore_newest(loop.build_program(None, None).state)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ends.append((jax.device_get(restored), [json.loads(r)["step"] for r in rows]))
    chex.assert_trees_all_equal(ends[0][0][0], ends[1][0][0])
    assert ends[0][0][1] == ends[1][0][1] and ends[0][1] == ends[1][1]


@pytest.mark.usefixtures("one_device")
def test_a_step_that_does_not_fit_names_the_settings(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @jax.jit
    def enormous_step(state: Any, batch: Any, key: Any) -> Any:
        return state, {"loss": jnp.zeros(2**45)}

    config = tiny_config()
    program = linear_program(config, make_mesh(jax.devices()[:1]))
    program = dataclasses.replace(program, train_step=enormous_step)
    monkeypatch.setattr(loop, "build_program", lambda config, mesh: program)
    settings = r"remat=True; accumulate_steps=2, or more; batch_size=4, or smaller"
    with pytest.raises(OutOfMemory, match=rf"training step does not fit.*{settings}"):
        train(config, tmp_path)


def test_the_number_of_classes_can_be_left_to_the_data(
    tiny_config: Any, tmp_path: Path
) -> None:
    for regression, outputs in ((None, 3), ("pcr", 12), ("scr", 4)):
        config = tiny_config()
        config.model.num_classes = None
        workdir = tmp_path / str(regression)
        if regression is not None:
            config.localization = LocalizationConfig(regression=regression)
            config.optimizer.metric = "box_error"
        trainer = begin(config, workdir)
        layer = trainer.program.state.params["fc8"]
        assert layer["bias"].shape == (outputs,)
        assert read_config(workdir).model.num_classes == outputs
        begin(config, workdir)  # goes on
        config.model.num_classes = outputs
        begin(config, workdir)
        config.model.num_classes = outputs + 1
        with pytest.raises(ValueError, match="num_classes"):
            Trainer(config, workdir)
        with pytest.raises(ValueError, match=rf"expected model\.num_classes={outputs}"):
            Trainer(config, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_network_larger_than_the_machine_is_refused(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config()
    config.model.width = 100
    with pytest.raises(OutOfMemory, match=r"make model\.width smaller"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_needs_no_data_is_refused_before_they_are_opened(
    tiny_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    claim(tmp_path / "run", tiny_config())
    config = tiny_config()
    config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trainer(config, tmp_path / "run")
    config.batch_size = 16
    with pytest.raises(WorkdirMismatch, match="batch_size: 8 there, 16 now"):
        Trainer(config, tmp_path / "run")
    config.optimizer.schedule = "cosin"
    with pytest.raises(ValueError, match=r"optimizer\.schedule 'cosin'"):
        Trainer(config, tmp_path / "run")
    config.optimizer.name = "sdg"
    with pytest.raises(ValueError, match=r"optimizer\.name 'sdg'"):
        Trainer(config, tmp_path / "run")


@dataclasses.dataclass
class WatchedSum:
    """A sum of a step that notes how many steps had begun when it was waited for."""

    array: jax.Array
    begun: Callable[[], int]
    waited: list[int]

    def is_ready(self) -> bool:
        return self.array.is_ready()  # type: ignore[attr-defined]

    def copy_to_host_async(self) -> None:
        self.array.copy_to_host_async()

    def block_until_ready(self) -> None:
        self.waited.append(self.begun())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.waited.append(self.begun())
        return np.asarray(self.array)


@dataclasses.dataclass
class WatchedStep:
    """A training step whose sums note when the loop waits for them."""

    step: Callable[..., Any]
    change: Callable[[int, Any], Any] = lambda step, sums: sums
    sums: list[dict[str, jax.Array]] = dataclasses.field(default_factory=list)
    waited: list[list[int]] = dataclasses.field(default_factory=list)

    def lower(self, *arguments: Any) -> "WatchedStep":
        return self

    def compile(self, options: Any) -> "WatchedStep":
        return self

    def __call__(self, *arguments: Any) -> tuple[TrainState, dict[str, WatchedSum]]:
        state, sums = self.step(*arguments)
        sums = self.change(len(self.sums) + 1, sums)
        self.sums.append(sums)
        self.waited.append([])
        return state, {
            name: WatchedSum(value, lambda: len(self.sums), self.waited[-1])
            for name, value in sums.items()
        }


def watch_steps(patch: pytest.MonkeyPatch, **arguments: Any) -> WatchedStep:
    program = loop.build_program(None, None)  # type: ignore[arg-type]
    watched = WatchedStep(program.train_step, **arguments)
    program = dataclasses.replace(program, train_step=watched)
    patch.setattr(loop, "build_program", lambda config, mesh: program)
    return watched


def test_a_line_waits_for_no_step_that_was_just_given_to_the_devices(
    linear_training: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = linear_training
    config.log_every_steps, config.checkpoint_every_steps = 2, 1000
    watched = watch_steps(monkeypatch)
    assert train(config, tmp_path) is None
    rows = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    saved = [row["step"] for row in rows if "validation_loss" in row]
    last = len(watched.sums)
    assert saved[-1] == last > 9 and saved[0] > 4
    for step, waited in enumerate(watched.waited, 1):
        # The first compiles; before a save or a validation everything is looked at.
        is_first = step == 1 or step in saved
        assert min(waited) == (step if is_first else step + 1), step

    lines = [row for row in rows if "train_loss" in row]
    ends = [row["step"] for row in lines]
    assert ends == sorted({*range(2, last + 1, 2), *saved})
    for begin, line in zip([0, *ends], lines, strict=False):
        sums = watched.sums[begin : line["step"]]
        expected = summarize_training(sums, line["step"], config.batch_size)
        assert {name: line[name] for name in expected} == expected
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


@pytest.mark.parametrize(
    ("bad", "span", "begun"),
    [
        (4, "steps 1 to 4", 5),  # a line is written when the step after it has begun
        (5, "steps 5 to 5", 5),  # or where a save follows it,
        (7, "steps 6 to 8", 9),
        (9, "steps 9 to 9", 9),  # or a validation
    ],
)
def test_a_state_of_a_loss_that_is_no_number_is_not_saved(
    bad: int,
    span: str,
    begun: int,
    linear_training: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(step: int, sums: dict[str, Any]) -> dict[str, Any]:
        return sums | {"loss": sums["loss"] * np.nan} if step == bad else sums

    config = linear_training
    config.log_every_steps, config.checkpoint_every_steps = 4, 5
    watched = watch_steps(monkeypatch, change=spoil)
    good = "step 5" if bad > 5 else "none yet"
    with pytest.raises(TrainingDiverged, match=rf"in {span} .*checkpoint: {good}"):
        train(config, tmp_path)
    assert saved_steps(tmp_path) == ([5] if bad > 5 else [])
    assert len(watched.sums) == begun

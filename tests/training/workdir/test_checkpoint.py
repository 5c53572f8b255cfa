"""Checkpoints: what comes back, and what a disk that refuses one leaves behind."""

import asyncio
import dataclasses
import gc
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src import asyncio_utils

from tests.disk import file_sizes_up_to
from vgg_jax.config import OptimizerConfig
from vgg_jax.distributed import make_mesh, replicated
from vgg_jax.files import resolve
from vgg_jax.training.optimizer import make_optimizer, set_learning_rate
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState
from vgg_jax.training.workdir.checkpoint import (
    METADATA,
    Checkpoints,
    DamagedCheckpoint,
    SaveError,
    read_record,
    saved_steps,
)

METRIC = "validation_top5_error"


def state(step: int) -> TrainState:
    """80 kB of noise, which does not compress."""
    rng = np.random.default_rng(step)
    params = {"fc8": {"kernel": jnp.asarray(rng.normal(size=(100, 200)), jnp.float32)}}
    optimizer = make_optimizer(OptimizerConfig())
    opt_state = set_learning_rate(optimizer.init(params), 1.25e-3)
    return TrainState(
        step=jnp.int32(step), params=params, batch_stats={}, opt_state=opt_state
    )


def abstract(devices: list[jax.Device]) -> TrainState:
    sharding = replicated(make_mesh(devices))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state(0)
    )


def test_step_rate_and_plateau_come_back_on_any_number_of_devices(
    tmp_path: Path,
) -> None:
    plateau = Plateau(best=0.1 + 0.2, waited=2, drops=1)
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(7), plateau, {METRIC: 0.3})
    for devices in (jax.devices(), jax.devices()[:2]):
        with Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
            back, same = checkpoints.restore(abstract(devices), 7)
        assert same == plateau
        chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(7)))
        assert optax.tree.get(back.opt_state, "learning_rate") == np.float32(1.25e-3)


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    errors = {1: 0.5, 2: 0.3, 3: None, 4: 0.4, 5: None}
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None
        for step, error in errors.items():
            found = None if error is None else {METRIC: error}
            checkpoints.save(state(step), Plateau(), found)
        checkpoints.wait()
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        checkpoints.save(state(6), Plateau(), {METRIC: 0.35})
        checkpoints.wait()
        assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    assert saved_steps(tmp_path) == [2, 6]
    assert saved_steps(tmp_path / "nowhere") == []


def test_a_refused_save_is_told_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(drops=1), None)
        checkpoints.wait()
        with file_sizes_up_to(10_000):
            checkpoints.save(state(2), Plateau(), None)
            with pytest.raises(
                SaveError, match=r"checkpoint: step 1\. Is the disk full"
            ):
                # Told when the next one comes.
                checkpoints.save(state(3), Plateau(), None)
    assert saved_steps(tmp_path) == [1]


def test_a_run_goes_on_after_a_save_that_was_killed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(drops=1), None)
        checkpoints.wait()
    # What a killed save leaves, and a removal that was killed.
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "0" / "params").mkdir(parents=True)
    assert saved_steps(tmp_path) == [1]
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step == 1
        checkpoints.save(state(2), Plateau(drops=2), None)
        checkpoints.wait()
        back, plateau = checkpoints.restore(abstract(jax.devices()[:1]), 2)
    assert plateau.drops == 2 and saved_steps(tmp_path) == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(2)))


def resources() -> tuple[int, int]:
    """The threads and the descriptors of this process."""
    gc.collect()  # what earlier tests left
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def test_saving_leaves_no_thread_and_no_descriptor_behind(tmp_path: Path) -> None:
    params = {"fc8": {"bias": jnp.zeros(2)}}
    small = TrainState(jnp.int32(0), params, {}, {"momentum": jnp.zeros(2)})
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        for step in range(1, 26):
            one = dataclasses.replace(small, step=jnp.int32(step))
            checkpoints.save(one, Plateau(), None)
            checkpoints.wait()
            if step == 5:
                threads, descriptors = resources()
        threads_at_end, descriptors_at_end = resources()
    # Idle threads of Orbax's pools come and go.
    assert threads_at_end < threads + 5 and descriptors_at_end < descriptors + 5


def test_saving_leaves_no_objects_behind_for_each_array(tmp_path: Path) -> None:
    """TensorStore keeps what it says of a store, and Orbax asks for every array."""
    arrays, saves = 60, 8
    params = {"fc8": {f"bias{i}": jnp.zeros(2) for i in range(arrays)}}
    state = TrainState(jnp.int32(0), params, {}, {"momentum": jnp.zeros(2)})
    before = 0
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        for step in range(2 * saves):
            if step == saves:
                gc.collect()
                before = sys.getallocatedblocks()
            checkpoints.save(
                dataclasses.replace(state, step=jnp.int32(step)), Plateau(), None
            )
            checkpoints.wait()
    gc.collect()
    assert (sys.getallocatedblocks() - before) / saves < 2 * arrays


def test_a_save_after_a_refused_one_is_not_skipped(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(), None)
        for step in (2, 3):
            checkpoints.wait()
            with file_sizes_up_to(10_000):
                checkpoints.save(state(step), Plateau(), None)
                with pytest.raises(SaveError):
                    checkpoints.wait()
            assert (checkpoints.latest_step, saved_steps(tmp_path)) == (1, [1])
        checkpoints.save(state(3), Plateau(), None)
        checkpoints.wait()
        assert (checkpoints.latest_step, saved_steps(tmp_path)) == (3, [3])


def test_a_refused_save_ends_the_block_with_its_error(tmp_path: Path) -> None:
    def save(error: Exception | None) -> None:
        with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
            checkpoints.save(state(2), Plateau(), None)
            if error is not None:
                raise error

    for error, expected in ((None, SaveError), (KeyError("another"), KeyError)):
        with file_sizes_up_to(10_000), pytest.raises(expected):
            save(error)


def save_two(workdir: Path) -> None:
    """Steps 1, the best, and 2."""
    with Checkpoints(workdir, METRIC, read_only=False) as checkpoints:
        checkpoints.save(state(1), Plateau(drops=1), {METRIC: 0.5})
        checkpoints.save(state(2), Plateau(drops=2), None)


def change_a_bit(workdir: Path, step: int) -> None:
    """Saves a step anew, with one bit of one weight changed and nothing else."""
    path = workdir / "checkpoints" / str(step)
    metadata = json.loads((path / METADATA).read_text())["custom_metadata"]
    changed = jax.device_get(state(step))
    kernel = np.array(changed.params["fc8"]["kernel"])
    kernel.view(np.uint32)[70, 30] ^= 1
    arrays = {
        "params": {"fc8": {"kernel": kernel}},
        "opt_state": changed.opt_state,
    }
    ocp.save_checkpointables(path, arrays, overwrite=True, custom_metadata=metadata)


def test_a_damaged_checkpoint_is_set_aside_for_the_newest_intact_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_two(tmp_path)
    change_a_bit(tmp_path, 2)
    abstract_state = abstract(jax.devices()[:2])
    folder = tmp_path / "checkpoints"
    with (
        Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=f"{folder}/2 is damaged: params"),
    ):
        checkpoints.restore(abstract_state, 2)
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        restored = checkpoints.restore_newest(abstract_state)
        assert restored is not None
        back, plateau = restored
        assert plateau.drops == 1
        chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(1)))
        (warning,) = capsys.readouterr().err.splitlines()
        assert f"checkpoint {folder}/2 is damaged: params/fc8/kernel" in warning
        assert "renamed 2.damaged" in warning and "from step 1" in warning
        checkpoints.save(state(2), Plateau(), None)
        checkpoints.wait()
        checkpoints.restore(abstract_state, 2)
    assert {path.name for path in folder.iterdir()} == {"1", "2", "2.damaged"}


def test_whatever_byte_changes_no_other_state_is_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_two(tmp_path)
    files = [
        path.relative_to(tmp_path)
        for path in sorted((tmp_path / "checkpoints" / "2").rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    for number, name in enumerate(files):
        workdir = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "checkpoints", workdir / "checkpoints")
        content = bytearray((workdir / name).read_bytes())
        content[len(content) // 2] ^= 0x10
        (workdir / name).write_bytes(content)
        with Checkpoints(workdir, METRIC, read_only=True) as checkpoints:
            restored = checkpoints.restore_newest(abstract(jax.devices()[:1]))
        assert restored is not None
        back, plateau = restored
        step = int(back.step)
        assert plateau.drops == step
        chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(step)))
        assert (step == 1) == ("2 is damaged" in capsys.readouterr().err)


def test_reads_of_a_damaged_checkpoint_leave_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_two(tmp_path)
    listed = tmp_path / "checkpoints/2/params/array_metadatas/process_0"
    listed.write_bytes(listed.read_bytes() + b"x" * 100)
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(abstract(jax.devices()[:1]))
    assert restored is not None and int(restored[0].step) == 1
    gc.collect()
    assert not lost
    assert sys.unraisablehook == lost.append


@pytest.mark.parametrize("is_in_loop", [False, True])
def test_what_failed_work_of_orbax_has_begun_comes_to_its_end(is_in_loop: bool) -> None:
    ended = []

    async def read() -> None:
        await asyncio.sleep(0.1)
        ended.append(True)

    async def work() -> None:
        ended.append(asyncio.ensure_future(read()))
        await asyncio.sleep(0)
        raise ValueError("damaged")

    async def outer() -> None:  # as a handler of Orbax calls another's
        asyncio_utils.run_sync(work())

    with pytest.raises(ValueError, match="damaged"):
        asyncio_utils.run_sync(outer() if is_in_loop else work())
    assert ended[1:] == [True]


@pytest.mark.parametrize("is_in_loop", [False, True])
def test_a_signal_waits_for_no_read_of_orbax(is_in_loop: bool) -> None:
    async def outer() -> None:
        asyncio_utils.run_sync(asyncio.sleep(30))

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    begun = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            asyncio_utils.run_sync(outer() if is_in_loop else asyncio.sleep(30))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 10


def test_without_an_intact_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    save_two(tmp_path)
    change_a_bit(tmp_path, 2)
    (tmp_path / "checkpoints" / "1" / METADATA).write_text("{}")
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        with pytest.raises(ValueError, match="no checkpoint is intact") as error:
            checkpoints.restore_newest(abstract(jax.devices()[:1]))
        with pytest.raises(ValueError, match="no checkpoint is intact"):
            checkpoints.load_best(abstract(jax.devices()[:1]).params, {})
    assert "checkpoints/1 is damaged" in str(error.value)
    assert "checkpoints/2 is damaged" in str(error.value)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before


def test_the_newest_intact_one_stands_in_for_a_damaged_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_two(tmp_path)
    params = abstract(jax.devices()[:1]).params

    def loaded_step() -> int:
        with Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
            step, loaded, _ = checkpoints.load_best(params, {})
        chex.assert_trees_all_equal(
            jax.device_get(loaded), jax.device_get(state(step).params)
        )
        return step

    assert loaded_step() == 1 and capsys.readouterr().err == ""
    change_a_bit(tmp_path, 2)
    assert loaded_step() == 1 and capsys.readouterr().err == ""

    def swap_lists(workdir: Path, step: int) -> None:
        parts = workdir / "checkpoints" / str(step)
        lists = [parts / name / "_METADATA" for name in ("params", "opt_state")]
        contents = [path.read_bytes() for path in lists]
        for path, content in zip(lists, reversed(contents), strict=True):
            path.write_bytes(content)

    for i, damage in enumerate((change_a_bit, swap_lists)):
        save_two(tmp_path / f"other{i}")
        shutil.rmtree(tmp_path / "checkpoints")
        shutil.move(tmp_path / f"other{i}" / "checkpoints", tmp_path / "checkpoints")
        damage(tmp_path, 1)
        assert loaded_step() == 2
        (warning,) = capsys.readouterr().err.splitlines()
        assert "checkpoints/1 is damaged" in warning and "step 2, the newest" in warning


def test_a_checkpoint_whose_metadata_are_gone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best one is not left out without a word, nor removed by the next start."""
    save_two(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "1" / METADATA).unlink()
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=f"1 is damaged: its {METADATA} is"):
            checkpoints.restore(abstract(jax.devices()[:1]), 1)
        step, _, _ = checkpoints.load_best(abstract(jax.devices()[:1]).params, {})
    assert step == 2 and (folder / "1" / "params").is_dir()
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{folder}/1 is damaged: its {METADATA} is missing; step 2, the" in warning


def test_a_removal_that_was_killed_is_no_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_two(tmp_path)
    with (
        monkeypatch.context() as patch,
        Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints,
    ):
        patch.setattr(type(resolve(tmp_path)), "rmtree", lambda self: None)
        checkpoints.save(state(3), Plateau(), {METRIC: 0.4})
    assert saved_steps(tmp_path) == [3]
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step == checkpoints.best_step == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert capsys.readouterr().err == ""


def test_a_changed_record_is_damage(tmp_path: Path) -> None:
    save_two(tmp_path)
    path = tmp_path / "checkpoints" / "2"
    text = (path / METADATA).read_text()
    assert read_record(path).plateau.drops == 2
    for changed in (
        text.replace('\\"drops\\": 2', '\\"drops\\": 3'),
        text[:-20],
        "[]",
        text.replace('"digest"', '"digests"'),
    ):
        assert changed != text
        (path / METADATA).write_text(changed)
        with pytest.raises(DamagedCheckpoint, match=f"{path} is damaged"):
            read_record(path)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "3")
    with pytest.raises(DamagedCheckpoint):  # it would pass for a later step
        read_record(tmp_path / "checkpoints" / "3")


def test_a_store_that_cannot_be_read_now_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_two(tmp_path)

    def refuse(*_: object) -> None:
        raise ValueError("no entry") from OSError("PERMISSION_DENIED: not yours")

    monkeypatch.setattr(ocp, "load_checkpointables", refuse)
    with (
        Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints,
        pytest.raises(ValueError, match=r"/2: OSError: PERMISSION_DENIED"),
    ):
        checkpoints.restore_newest(abstract(jax.devices()[:1]))
    assert saved_steps(tmp_path) == [1, 2]


@pytest.mark.slow
def test_hosts_agree_on_damage_and_on_digests(tmp_path: Path) -> None:
    """Two hosts with a layer in parts, and one host with the whole of it."""
    printed: dict[int, list[list[str]]] = {}
    for hosts in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        workdir = tmp_path / str(hosts)
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.training.workdir.save_on_hosts"),
                    *(str(workdir), address, str(hosts), str(index)),
                ],
                cwd=Path(__file__).parents[3],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(hosts)
        ]
        outputs = [process.communicate(timeout=120) for process in processes]
        printed[hosts] = [
            [line for line in out.splitlines() if line[:6] in ("digest", "restor")]
            for out, _ in outputs
        ]
        assert "checkpoints/2 is damaged" in outputs[0][1]
        names = {path.name for path in (workdir / "checkpoints").iterdir()}
        assert names == {"1", "2", "2.damaged"}
    ((digests, restored),) = printed[1]
    assert digests.startswith("digests {'conv'") and restored == "restored 1"
    assert printed[2] == printed[1] * 2


def test_folders_that_are_no_checkpoints_stop_nobody(tmp_path: Path) -> None:
    save_two(tmp_path)
    folder = tmp_path / "checkpoints"
    strays = ("old", "12", "3", "2.copy", "old/params")
    for name in strays:
        (folder / name).mkdir()
    (folder / "14").write_text("a file")
    assert saved_steps(tmp_path) == [1, 2]
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert checkpoints.latest_step == 2
        restored = checkpoints.restore_newest(abstract(jax.devices()[:1]))
        assert restored is not None and int(restored[0].step) == 2
        checkpoints.save(state(3), Plateau(), None)  # in the place of a stray
        checkpoints.wait()
        checkpoints.restore(abstract(jax.devices()[:1]), 3)
    assert saved_steps(tmp_path) == [1, 3]
    assert {"old", "12", "2.copy", "14"} < {path.name for path in folder.iterdir()}


def test_checkpoints_of_an_earlier_version_come_back(tmp_path: Path) -> None:
    """As they were saved before they had digests."""
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as old:
        for step, error in ((1, 0.5), (2, 0.4), (3, None)):
            one = state(step)
            old.save_checkpointables(
                step,
                {"params": one.params, "opt_state": one.opt_state},
                metrics=None if error is None else {METRIC: error},
                custom_metadata={"plateau": json.dumps(vars(Plateau(drops=step)))},
                force=True,
            )
    with Checkpoints(tmp_path, METRIC, read_only=False) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (3, 2)
        restored = checkpoints.restore_newest(abstract(jax.devices()[:1]))
        assert restored is not None
        back, plateau = restored
        assert plateau == Plateau(drops=3)
        chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state(3)))
        checkpoints.save(state(4), Plateau(), None)
    assert saved_steps(tmp_path) == [2, 4]

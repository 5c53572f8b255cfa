"""The attacks themselves: what is right counts as right, and every fault is noticed."""

import contextlib
import itertools
import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torture import (
    configurations,
    damage,
    disks,
    hosts,
    images,
    kills,
    records,
    signals,
)
from tests.torture.attack import RIGHT, Attack, Case, Outcome, Verdict, lost
from tests.torture.fake import PAUSE_STEP, STEPS
from tests.torture.isolated import Effort, measure, run_isolated
from tests.torture.laboratory import Laboratory, PreparationFailed
from tests.torture.processes import Ended
from tests.torture.program import share_time
from tests.torture.tally import BEGIN, END, Tally, markdown, write_block
from vgg_jax import config_file
from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.data import transforms
from vgg_jax.distributed import make_mesh
from vgg_jax.training.program import build_program
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.workdir.checkpoint import Checkpoints, restore_model
from vgg_jax.training.workdir.facts import claim


class FakeLaboratory(Laboratory):
    """Runs `fake.py` in the place of train.py and eval.py."""

    def __init__(self, folder: Path, fault: str = ""):
        super().__init__(folder)
        self.fault = fault
        self.environment = os.environ

    def command(self, script: str, workdir: Path, *more: str) -> list[str]:
        fake = str(Path(__file__).with_name("fake.py"))
        fault = f"--fault={self.fault}"
        return [sys.executable, "-S", fake, script, f"--workdir={workdir}", fault]

    def digest(self, checkpoint: Path) -> str:
        return (checkpoint / "state").read_text()


def named(attack: Attack, kind: str, number: int = 0) -> Case:
    assert kind in attack.kinds
    return Case(attack.name, 0, number, kind)


def outcome(attack: Attack, laboratory: Laboratory, kind: str, number: int = 0) -> Any:
    [only] = attack.run(laboratory, [named(attack, kind, number)])
    return only


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the training does that is not disturbed."""
    return FakeLaboratory(tmp_path_factory.mktemp("trained")).trained


@pytest.fixture
def fake(tmp_path: Path, trained: Any) -> Laboratory:
    laboratory = FakeLaboratory(tmp_path)
    laboratory.trained = trained
    return laboratory


def test_what_goes_on_as_if_nothing_had_happened_is_right(fake: Laboratory) -> None:
    for attack, kind in (
        (kills.ATTACK, "while saving, twice"),
        (signals.ATTACK, "SIGTERM to the group in steps, 0 workers"),
        (signals.ATTACK, "SIGINT to the process in saving, 0 workers"),
    ):
        assert outcome(attack, fake, kind) == RIGHT, kind


@pytest.mark.parametrize(
    ("fault", "attack", "kind", "verdict", "reason"),
    [
        ("forgets", kills.ATTACK, "at a step", Verdict.LOST, "other arrays"),
        ("drops", signals.ATTACK, "steps", Verdict.LOST, "saved only step"),
        ("wrong code", signals.ATTACK, "steps", Verdict.WRONG, "exit code 0"),
        ("deaf", signals.ATTACK, "steps", Verdict.LOST, "saved only step"),
    ],
)
def test_a_training_that_breaks_a_promise_is_noticed(
    fault: str,
    attack: Attack,
    kind: str,
    verdict: Verdict,
    reason: str,
    fake: FakeLaboratory,
) -> None:
    fake.fault = fault
    if kind == "steps":
        kind = "SIGTERM to the process in steps, 0 workers"
    # The blow falls once steps are printed that are not saved, in the fake's pause.
    for number in itertools.count():
        step = named(attack, kind, number).rng().integers(1, STEPS)
        if step == PAUSE_STEP:
            break
    found = outcome(attack, fake, kind, number)
    assert found.verdict is verdict and reason in found.reason, found


@pytest.mark.parametrize("trouble", ["moved away", "removed"])
def test_a_folder_that_vanishes_is_told_and_nothing_is_lost(
    trouble: str, fake: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def plain(folder: Path, size: int) -> Iterator[disks.Disk]:
        folder.mkdir()
        yield disks.Disk(folder)

    monkeypatch.setattr(disks, "mounted", plain)
    kind = f"a folder that is {trouble}, train.py"
    assert outcome(disks.ATTACK, fake, kind, 1) == RIGHT
    monkeypatch.setattr(
        fake, "finish", lambda script, workdir, *more: lost("other weights")
    )
    assert outcome(disks.ATTACK, fake, kind, 1).verdict is Verdict.LOST


def test_hosts_that_train_although_they_disagree_are_noticed() -> None:
    refusal = Ended(1, "host 1: error: another seed", 1.0)
    trained = Ended(1, "step 1/9  loss\nerror: another seed", 1.0)
    assert hosts.judge_disagreement([refusal, refusal]) == RIGHT
    for ends, verdict in (
        ([refusal, trained], Verdict.LOST),
        ([refusal, Ended(0, "", 1.0)], Verdict.WRONG),
        ([refusal, Ended(None, "", 60.0)], Verdict.WRONG),
    ):
        assert hosts.judge_disagreement(ends).verdict is verdict


class RunLaboratory(FakeLaboratory):
    """Has the folder of a run with random weights, for `damage`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        model = VGGConfig(name="vgg11", num_classes=9, width=0.02, head="global_pool")
        data = DataConfig(dataset="folder", crop=32, scale_min=32, scale_max=32)
        config = Config(model=model, data=data)
        workdir = self.new_folder() / "run"
        workdir.mkdir()
        claim(workdir, config)
        # Zeros, for nothing has to be compiled to make them.
        state = jax.tree.map(
            lambda array: jnp.zeros(array.shape, array.dtype),
            build_program(config, make_mesh()).state,
        )
        metric = f"validation_{config.optimizer.metric}"
        with Checkpoints(workdir, metric, read_only=False) as checkpoints:
            checkpoints.save(state, Plateau(), None)
            checkpoints.wait()
        self.evaluated = (workdir, None)  # type: ignore[assignment]


def test_weights_that_are_others_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory = RunLaboratory(tmp_path)
    stray = "a stray file or folder, read by the weights"
    assert outcome(damage.ATTACK, laboratory, stray) == RIGHT

    def with_other_weights(workdir: Path) -> Any:
        model, config, step = restore_model(workdir)
        model.conv1_1.kernel[...] += 1e-6
        return model, config, step

    monkeypatch.setattr(damage, "restore_model", with_other_weights)
    found = outcome(damage.ATTACK, laboratory, stray)
    assert found.verdict is Verdict.LOST

    def fail(workdir: Path) -> Any:
        raise KeyError("params")

    monkeypatch.setattr(damage, "restore_model", fail)
    found = outcome(damage.ATTACK, laboratory, stray)
    assert found.verdict is Verdict.WRONG and "a traceback" in found.reason


def test_settings_that_are_misread_are_noticed(
    fake: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = configurations.ATTACK
    cases = [attack.case(0, number) for number in range(1, 13)]
    assert {case.kind for case in cases} == set(attack.kinds)
    assert [*attack.run(fake, cases)] == [RIGHT] * 12
    read = config_file.parse_value

    def misread(kind: Any, text: str) -> Any:
        return min(read(kind, text), 7) if kind is int else read(kind, text)

    monkeypatch.setattr(config_file, "parse_value", misread)
    found = [*attack.run(fake, [attack.case(0, number) for number in range(1, 40)])]
    assert Verdict.LOST in {one.verdict for one in found}


def test_pictures_that_are_decoded_wrongly_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [named(images.ATTACK, f"color PNG, {one}") for one in images.HARMS]
    assert {images.judge(case, tmp_path) for case in cases[:9]} == {RIGHT}
    truncated = named(images.ATTACK, "color JPEG, truncated")
    assert images.judge(truncated, tmp_path) == RIGHT
    black = np.zeros((60, 70, 3), np.uint8)
    for answer, verdict in (
        (lambda *_: black[..., : _[1]] + len(_[0]) % 250, Verdict.LOST),
        (lambda *_: black.astype(float), Verdict.LOST),
        (lambda *_: {}["pixels"], Verdict.WRONG),
    ):
        monkeypatch.setattr(transforms, "decode", answer)
        assert images.judge(truncated, tmp_path).verdict is verdict


def test_records_that_are_others_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named(records.ATTACK, "records, truncated")
    monkeypatch.setitem(records.MUTATIONS, "truncated", lambda rng, data: data)
    assert records.judge(case, tmp_path) == RIGHT
    other = [{"image": b"", "label": 0, "name": ""}]
    monkeypatch.setattr(records, "read", lambda data_dir: other)
    assert records.judge(case, tmp_path).verdict is Verdict.LOST


def test_a_process_that_dies_is_the_outcome_of_its_case(
    fake: Laboratory,
) -> None:
    good = [images.ATTACK.case(0, number) for number in range(2)]
    assert [*run_isolated(fake, good)] == [RIGHT, RIGHT]
    [found] = run_isolated(fake, [Case("nothing", 0, 0, "")])
    assert found.verdict is Verdict.WRONG and "the process died" in found.reason


def test_work_that_takes_too_much_is_noticed() -> None:
    def take_pages() -> int:
        with mmap.mmap(-1, 2**27) as pages:  # not from the heap, which may have some
            block = np.frombuffer(pages, np.uint8)
            block[...] = 1
            size = block.nbytes
            del block
        return size

    size, effort = measure(take_pages)
    assert 0.9 * size < effort.peak_bytes < 2 * size
    assert effort.excess is None
    assert "MiB" in (Effort(peak_bytes=2**31).excess or "")
    assert "s of CPU" in (Effort(cpu_seconds=60).excess or "")


def stub(name: str, weight: float, seconds: float, end: Outcome) -> Attack:
    def run(laboratory: Any, cases: Sequence[Case]) -> Iterator[Outcome]:
        for _ in cases:
            time.sleep(seconds)
            yield end

    return Attack(
        name=name, does="", right="", weight=weight, kinds={"all": 0}, run=run
    )


def test_time_is_shared_by_weight_and_every_failure_is_told(
    fake: Laboratory, tmp_path: Path
) -> None:
    attacks = [stub("a", 1, 0.01, RIGHT), stub("b", 3, 0.002, lost("a bit"))]
    tallies = {attack.name: Tally() for attack in attacks}
    told: list[str] = []
    share_time(attacks, fake, 7, 0.2, tallies, told.append)
    assert 2 < tallies["b"].seconds / tallies["a"].seconds < 4
    assert tallies["a"].verdicts[Verdict.RIGHT] == tallies["a"].tried > 1
    assert "lost: b:0 (all): a bit; --repeat b:0 --seed 7" in told
    document = tmp_path / "trust.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_block(document, markdown(attacks, tallies, "heading"))
    text = document.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert f"| b | {tallies['b'].tried} | 0 | 0 | {tallies['b'].tried} |" in text
    with pytest.raises(ValueError, match="put them there"):
        write_block(Path(__file__), "")


def test_a_case_is_the_same_whenever_it_is_run() -> None:
    attack = kills.ATTACK
    one, same, other = (attack.case(seed, 3) for seed in (0, 0, 1))
    assert one == same and one.rng().random() == same.rng().random()
    assert one.rng().random() != other.rng().random()
    kinds = {attack.case(0, number).kind for number in range(len(attack.kinds))}
    assert kinds == set(attack.kinds)


def test_a_command_that_fails_without_any_attack_is_a_failure(fake: Laboratory) -> None:
    def run(laboratory: Any, cases: Sequence[Case]) -> Iterator[Outcome]:
        time.sleep(0.01)
        raise PreparationFailed("train.py without any attack: exit code 1")
        yield

    attack = Attack(name="a", does="", right="", weight=1, kinds={"all": 0}, run=run)
    tallies = {"a": Tally()}
    share_time([attack], fake, 0, 0.05, tallies, lambda text: None)
    assert tallies["a"].verdicts[Verdict.WRONG] == tallies["a"].tried > 0

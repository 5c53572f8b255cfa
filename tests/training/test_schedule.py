"""When a run validates, and the learning rate of each of its steps."""

import math
from typing import Any

import numpy as np
import pytest

from vgg_jax.config import Config, DataConfig, OptimizerConfig, VGGConfig
from vgg_jax.training.schedule import (
    SCHEDULES,
    Plateau,
    Timetable,
    learning_rate_at,
    schedule_for,
)


def timetable(num_epochs: float, **optimizer: Any) -> Timetable:
    """The timetable of a run of ten steps an epoch."""
    config = Config(
        model=VGGConfig(name="vgg11"),
        data=DataConfig(dataset="folder"),
        optimizer=OptimizerConfig(**optimizer),
        batch_size=10,
        num_epochs=num_epochs,
        checkpoint_every_steps=4,
        log_every_steps=3,
    )
    return Timetable.for_config(config, examples=100)


def test_the_end_is_validated_and_saved_wherever_it_falls() -> None:
    short = timetable(2.5)
    assert short.total_steps == 25
    assert [s for s in range(1, 26) if short.validates(s)] == [10, 20, 25]
    assert [s for s in range(1, 26) if short.saves(s)] == [4, 8, 10, 12, 16, 20, 24, 25]
    assert all(short.logs(s) for s in range(1, 26) if short.saves(s) or s % 3 == 0)
    assert short.epoch(25) == 2.5
    assert timetable(2.51).total_steps == 26  # no part of an epoch is left out
    assert timetable(0.01).total_steps == 1


def test_the_plateau_counts_the_same_validations_however_long_the_run() -> None:
    seen = [
        [s for s in range(1, 26) if timetable(epochs).updates_plateau(s)]
        for epochs in (2.5, 10.0)
    ]
    assert seen[0] == seen[1] == [10, 20]


def test_only_the_plateau_schedule_counts_validations() -> None:
    for name in SCHEDULES:
        counted = [
            step
            for step in range(1, 26)
            if timetable(2.5, schedule=name).updates_plateau(step)
        ]
        assert counted == ([10, 20] if name == "plateau" else [])
        assert timetable(2.5, schedule=name).validates(20)


def run_plateau(errors: list[float], **settings: float) -> list[tuple[float, bool]]:
    config = OptimizerConfig(learning_rate=1.0, **settings)  # type: ignore[arg-type]
    plateau = Plateau()
    seen = []
    for error in errors:
        plateau.update(error, config)
        seen.append(
            (
                round(learning_rate_at(1, timetable(9.0), plateau, config), 6),
                plateau.finished,
            )
        )
    return seen


def test_rate_falls_only_after_patience_runs_out() -> None:
    seen = run_plateau(
        [0.5, 0.4, 0.4, 0.41, 0.3, 0.3, 0.3, 0.3],
        plateau_patience=3,
        plateau_min_delta=0.0,
    )
    assert [rate for rate, _ in seen] == [1, 1, 1, 1, 1, 1, 1, 0.1]


def test_improvement_smaller_than_min_delta_does_not_count() -> None:
    seen = run_plateau(
        [0.5, 0.4995, 0.499], plateau_patience=2, plateau_min_delta=0.005
    )
    assert [rate for rate, _ in seen] == [1, 1, 0.1]


def test_patience_begins_anew_after_a_fall() -> None:
    seen = run_plateau([0.5] * 7, plateau_patience=3, plateau_drops=3)
    assert [rate for rate, _ in seen] == [1, 1, 1, 0.1, 0.1, 0.1, 0.01]


def test_three_falls_then_the_end() -> None:
    seen = run_plateau([0.5] * 6, plateau_patience=1, plateau_drops=3)
    assert [rate for rate, _ in seen] == [1, 0.1, 0.01, 0.001, 0.001, 0.001]
    assert [finished for _, finished in seen] == [False] * 4 + [True] * 2


def test_an_error_that_is_not_a_number_is_no_improvement() -> None:
    seen = run_plateau([float("nan"), float("nan")], plateau_patience=2)
    assert seen[-1][0] == pytest.approx(0.1)


def rates(num_epochs: float, steps: int, **settings: Any) -> list[float]:
    config = OptimizerConfig(learning_rate=0.5, **settings)
    run = timetable(num_epochs)
    return [learning_rate_at(step, run, Plateau(), config) for step in range(steps)]


def test_the_step_schedule_falls_every_so_many_epochs() -> None:
    got = rates(4.0, 40, schedule="step", step_epochs=1.0, step_factor=0.1)
    expected = np.repeat([0.5, 0.05, 0.005, 0.0005], 10)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_step_schedule_takes_parts_of_epochs() -> None:
    got = rates(4.0, 40, schedule="step", step_epochs=0.1, step_factor=0.5)
    np.testing.assert_allclose(got, [0.5 * 0.5**step for step in range(40)])
    got = rates(4.0, 40, schedule="step", step_epochs=0.25, step_factor=0.5)
    falls = [step for step in range(1, 40) if got[step] < got[step - 1]]
    assert falls == [math.ceil(2.5 * fall) for fall in range(1, 16)]


def test_the_cosine_ends_at_zero() -> None:
    got = rates(4.0, 41, schedule="cosine")
    expected = [0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(41)]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    assert got[0] == 0.5 and got[20] == pytest.approx(0.25) and got[39] > 0 == got[40]


def test_the_polynomial_is_a_power_of_what_is_left() -> None:
    got = rates(4.0, 42, schedule="polynomial")
    expected = [0.5 * (1 - step / 40) ** 2 for step in range(41)]
    np.testing.assert_allclose(got, [*expected, 0], rtol=1e-12, atol=1e-15)
    got = rates(4.0, 41, schedule="polynomial", polynomial_power=1.0)
    np.testing.assert_allclose(got, np.linspace(0.5, 0, 41), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warmup_rises_linearly_to_the_schedules_own_rate(name: str) -> None:
    settings = {"schedule": name, "step_epochs": 0.5, "step_factor": 0.1}
    got = rates(4.0, 40, warmup_epochs=1.5, **settings)
    share = np.minimum(1, np.arange(1, 41) / 15)
    if name == "cosine":  # which begins at the end of the warm-up
        expected = [1.0] * 15 + [
            (1 + math.cos(math.pi * step / 25)) / 2 for step in range(25)
        ]
    else:
        expected = [rate / 0.5 for rate in rates(4.0, 40, **settings)]
    np.testing.assert_allclose(got, 0.5 * share * expected, rtol=1e-12)
    assert rates(4.0, 9, warmup_epochs=0.0, **settings)[0] == 0.5


def test_a_run_that_is_all_warmup_rises_to_its_end() -> None:
    got = rates(1.0, 10, warmup_epochs=2.0, schedule="cosine")
    np.testing.assert_allclose(got, 0.5 * np.arange(1, 11) / 20)


def test_an_unknown_schedule_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.schedule 'cosin'.*'cosine'"):
        schedule_for(OptimizerConfig(schedule="cosin"))

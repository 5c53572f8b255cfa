"""When a run validates, and which validations the plateau sees."""

from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.training.schedule import Schedule


def schedule(num_epochs: float) -> Schedule:
    config = Config(
        model=VGGConfig(name="vgg11"),
        data=DataConfig(dataset="folder"),
        batch_size=10,
        num_epochs=num_epochs,
        checkpoint_every_steps=4,
        log_every_steps=3,
    )
    return Schedule.of(config, examples=100)


def test_the_end_is_validated_and_saved_wherever_it_falls() -> None:
    short = schedule(2.5)
    assert short.total_steps == 25
    assert [s for s in range(1, 26) if short.validates(s)] == [10, 20, 25]
    assert [s for s in range(1, 26) if short.saves(s)] == [4, 8, 10, 12, 16, 20, 24, 25]
    assert all(short.logs(s) for s in range(1, 26) if short.saves(s) or s % 3 == 0)
    assert short.epoch(25) == 2.5
    assert schedule(2.51).total_steps == 26  # no part of an epoch is left out
    assert schedule(0.01).total_steps == 1


def test_the_plateau_sees_the_same_validations_however_long_the_run() -> None:
    seen = [
        [s for s in range(1, 26) if schedule(epochs).decides(s)]
        for epochs in (2.5, 10.0)
    ]
    assert seen[0] == seen[1] == [10, 20]

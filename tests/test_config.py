"""Settings that cannot be trained with are refused in a line that names them."""

import copy
import dataclasses
import math
import pickle
import pkgutil
from typing import Any

import pytest

from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LocalizationConfig,
    NiNConfig,
    Setting,
    VGGConfig,
    settings,
    validate,
)
from vgg_jax.training.program import validate_batch_size, validate_kind


def config() -> Config:
    return Config(model=VGGConfig(name="vgg11"), data=DataConfig(dataset="folder"))


NUMBERS = [
    name
    for name, declared, value in settings(config())
    if declared.interval and not isinstance(value, tuple)
]
WORDS = [name for name, declared, _ in settings(config()) if declared.choices]


def changed(setting: str, value: Any) -> Config:
    result: Any = config()
    owner = result
    *groups, name = setting.split(".")
    for group in groups:
        owner = getattr(owner, group)
    setattr(owner, name, value)
    return result


def test_the_defaults_are_fine() -> None:
    validate(config())


@pytest.mark.parametrize("setting", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_a_number_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"expected {setting} in .*, got {value}"):
        validate(changed(setting, value))


@pytest.mark.parametrize(
    ("setting", "inside", "outside"),
    [
        ("seed", 2**32 - 1, 2**32),
        ("optimizer.momentum", 0, 1),
        ("optimizer.plateau_factor", 1, 0),
        ("optimizer.plateau_drops", 0, -1),
        ("num_epochs", 0.1, 0),
        ("log_every_steps", 1, 0),
    ],
)
def test_the_ends_of_a_range(setting: str, inside: float, outside: float) -> None:
    validate(changed(setting, inside))
    with pytest.raises(ValueError, match=setting):
        validate(changed(setting, outside))


def test_every_setting_says_what_it_is() -> None:
    for whole in (config(), changed("localization", LocalizationConfig())):
        for name, declared, value in settings(whole):
            assert declared.help and "\n" not in declared.help, name
            assert not (declared.choices and declared.table), name
            if declared.choices and value is not None:
                assert value in declared.choices, name


def test_names_of_a_table_are_its_keys() -> None:
    tables = {name: one.table for name, one, _ in settings(config()) if one.table}
    values = {name: value for name, _, value in settings(config())}
    assert tables.keys() == {
        *("model.name", "data.dataset", "optimizer.name", "optimizer.schedule")
    }
    for name, table in tables.items():
        assert values[name] in pkgutil.resolve_name(table)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (Setting(help="x"), ""),
        (Setting(help="x", low=0, below=2**32), "[0, 4294967296)"),
        (Setting(help="x", above=0, high=1), "(0, 1]"),
        (Setting(help="x", below=0.5), "(-inf, 0.5)"),
    ],
)
def test_an_interval_is_written_as_mathematics_does(
    declared: Setting, expected: str
) -> None:
    assert declared.interval == expected


def test_an_unknown_keyword_is_answered_with_the_nearest_setting() -> None:
    with pytest.raises(TypeError, match="VGGConfig has no setting 'nam': did you mean"):
        VGGConfig(nam="vgg11")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'batch_size'"):
        dataclasses.replace(config(), batchsize=3)  # type: ignore[call-arg]
    assert copy.deepcopy(config()) == config()
    assert pickle.loads(pickle.dumps(config())) == config()


@pytest.mark.parametrize("setting", WORDS)
def test_an_unknown_word_is_answered_with_those_that_there_are(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown {setting} 'xyz'.*known are"):
        validate(changed(setting, "xyz"))


def test_boxes_and_classes_have_their_own_errors() -> None:
    boxes = changed("localization", LocalizationConfig(regression="scr"))
    with pytest.raises(ValueError, match=r"top5_error' is not measured .* box_error"):
        validate(boxes)
    boxes.optimizer.metric = "box_error"
    validate(boxes)
    with pytest.raises(ValueError, match=r"only top1_error, top5_error, loss"):
        validate(changed("optimizer.metric", "box_error"))


def test_an_unknown_regression_is_named() -> None:
    with pytest.raises(ValueError, match=r"localization\.regression 'pcs'.*'pcr'"):
        validate(changed("localization", LocalizationConfig(regression="pcs")))


def test_a_batch_divides_over_the_devices() -> None:
    with pytest.raises(ValueError, match=r"12 devices .* got 256; use a multiple of"):
        validate_batch_size(config(), 12)


def test_the_validation_crop_fits() -> None:
    with pytest.raises(ValueError, match=r"center_scale .* 224, got 200"):
        validate(changed("evaluation.center_scale", 200))


def test_top5_error_needs_more_than_five_classes() -> None:
    with pytest.raises(ValueError, match=r"set optimizer\.metric to top1_error"):
        validate(changed("model.num_classes", 5))


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_that_the_mean_or_the_images_have_not(channels: int) -> None:
    with pytest.raises(
        ValueError, match=rf"channel.*got {channels if channels == 2 else 3}"
    ):
        validate(changed("model.in_channels", channels))


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_pixels_are_not_divided_by(std: float) -> None:
    with pytest.raises(ValueError, match=r"expected data\.std in \(0, inf\)"):
        validate(changed("data.std", (1.0, 1.0, std)))


def test_settings_of_the_other_kind_of_network() -> None:
    # config.json would be read as the other kind, and the run could not go on.
    with pytest.raises(ValueError, match="vgg11 needs the other kind"):
        validate_kind(changed("model", NiNConfig(name="vgg11")))


def test_whitened_images_are_of_one_size_in_evaluation_too() -> None:
    data = DataConfig(
        dataset="cifar10", crop=32, scale_min=32, scale_max=32, whiten=True
    )
    config = Config(
        model=NiNConfig(name="nin_cifar"),
        data=data,
        evaluation=EvaluationConfig(center_scale=32, scales=(32,)),
    )
    validate(config)
    config.evaluation.scales = (32, 36)
    with pytest.raises(ValueError, match=r"evaluation\.scales of 32, .*got \[32, 36\]"):
        validate(config)

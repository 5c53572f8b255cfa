"""Settings that cannot be trained with are refused in a line that names them."""

import argparse
import copy
import dataclasses
import math
import pickle
import pkgutil
import random
import types
import typing
from typing import Any

import pytest

from vgg_jax import config_file
from vgg_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LocalizationConfig,
    ModelConfig,
    NiNConfig,
    Setting,
    VGGConfig,
    settings,
    validate,
)
from vgg_jax.training.program import (
    validate_batch_size,
    validate_kind,
    validate_settings,
)
from vgg_jax.training.schedule import Timetable


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


@pytest.mark.parametrize("setting", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [10**400, -(10**5000), 1e300, 1e-300, 2**63],
    ids=["400 digits", "5000 digits", "1e300", "1e-300", "2**63"],
)
def test_a_number_that_nothing_can_compute_with_is_named(
    setting: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"expected {setting} ") as error:
        validate(changed(setting, value))
    assert len(str(error.value)) < 300


# What a training would end in, in minutes: out of memory, of processes, or of patience.
@pytest.mark.parametrize(
    ("setting", "highest"),
    [
        ("batch_size", 2**20),
        ("accumulate_steps", 2**20),
        ("evaluation.batch_size", 2**20),
        ("evaluation.center_scale", 10_000),
        ("data.num_workers", 512),
        ("data.num_threads", 256),
        ("data.max_pixels", 2**30),
        ("model.num_classes", 2**20),
        ("model.fc_features", 2**20),
        ("model.width", 100),
        ("evaluation.bucket_ratios", 100),
    ],
)
def test_what_takes_memory_has_a_highest_value(setting: str, highest: int) -> None:
    is_list = setting == "evaluation.bucket_ratios"
    validate(changed(setting, (1.0, highest) if is_list else highest))
    with pytest.raises(ValueError, match=rf"expected {setting} in .*{highest}\], got"):
        validate(changed(setting, (1.0, highest + 1) if is_list else highest + 1))


def test_a_text_has_a_longest_length() -> None:
    validate(changed("data.data_dir", "a" * 500))
    for setting in ("data.data_dir", "init_from", "model.init"):
        message = f"expected {setting} of at most 500 characters, got 501"
        with pytest.raises(ValueError, match=message):
            validate(changed(setting, "a" * 501))


def test_scales_and_means_have_highest_values() -> None:
    sizes = {"crop": 10_000, "scale_min": 10_000, "scale_max": 10_000}
    validate(changed("data", DataConfig(dataset="folder", **sizes)).data)
    for name in sizes:
        with pytest.raises(ValueError, match=rf"expected data.{name} in \[1, 10000\]"):
            validate(changed(f"data.{name}", 10_001))
    for setting, value in (
        ("data.mean", (0, 4294967296, 0)),
        ("data.std", (1.0, 1e-40, 1.0)),
        ("evaluation.scales", (256, 10**7)),
    ):
        with pytest.raises(ValueError, match=rf"expected {setting} in "):
            validate(changed(setting, value))


WHOLE = ("0", "1", "-1", "3", "31", "2147483648", "4294967296", "9" * 20, "9" * 400)
REAL = (*WHOLE, "nan", "inf", "-inf", "1e-400", "1e308", "1e-320", "-0.0", "0.5")
TEXTS = ("", "x", "..", "\0", "a" * 5000, "é", "tfds:", "tfds:x/y:1.0.0", "~nobody/x")


def draw(kind: Any, declared: Setting, rng: random.Random) -> str:
    """Draws the text of a flag: an extreme value, or one of another type."""
    if isinstance(kind, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        one = typing.get_args(kind)[0]
        return ",".join(draw(one, declared, rng) for _ in range(rng.randrange(5)))
    names = declared.choices
    if declared.table:
        names = tuple(pkgutil.resolve_name(declared.table))
    values = {bool: ("true", "false", "x"), int: WHOLE, float: REAL}
    if rng.random() < 0.1:
        return rng.choice(REAL)
    return rng.choice(values.get(kind) or names or TEXTS)


@pytest.mark.parametrize("seed", range(4))
def test_settings_of_any_value_are_taken_or_refused_in_a_line(seed: int) -> None:
    rng = random.Random(seed)
    taken = 0
    for _ in range(100):
        run = config()
        run.model.num_classes = 10
        names = [(name, declared) for name, declared, _ in settings(run)]
        chosen = rng.sample(names, rng.randint(1, 3))
        texts = {n: draw(config_file._kind(run, n), d, rng) for n, d in chosen}
        try:
            values = {
                f"config.{name}": config_file.parse_value(
                    config_file._kind(run, name), text
                )
                for name, text in texts.items()
            }
            config_file.override(run, values)
            validate_settings(run, 1)
            Timetable.for_config(run, 60_000)
            taken += 1
        except (ValueError, argparse.ArgumentTypeError) as error:
            message = str(error)
            assert len(message) < 800 and "\n" not in message, texts
    assert 10 < taken < 60


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
            first, *_ = declared.help.split()
            assert first not in ("of", "to", "or", "such"), f"{name} is a fragment"
            assert not (declared.choices and declared.table), name
            if declared.choices:
                assert value in (None, *declared.choices), name


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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_every_number_is_finite(number: float) -> None:
    message = r"expected data\.mean in \[0, 255\], .*, got \(1"
    with pytest.raises(ValueError, match=message):
        validate(changed("data.mean", (1.0, 1.0, number)))


@pytest.mark.parametrize("setting", ["evaluation.scales", "evaluation.bucket_ratios"])
def test_a_list_that_must_have_a_value(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} of at least one value, got none"):
        validate(changed(setting, ()))


def test_a_scale_is_there_once() -> None:
    with pytest.raises(ValueError, match=r"scales to be different, got \(256, 256\)"):
        validate(changed("evaluation.scales", (256, 256)))


def test_the_warm_up_is_no_longer_than_the_run() -> None:
    validate(changed("optimizer.warmup_epochs", 74.0))
    with pytest.raises(ValueError, match=r"at most num_epochs, 74, got 74\.5"):
        validate(changed("optimizer.warmup_epochs", 74.5))


def test_kinds_of_networks_share_their_common_settings() -> None:
    vgg, nin = (
        {name: declared for name, declared, _ in settings(kind(name="vgg11"))}
        for kind in (VGGConfig, NiNConfig)
    )
    common = [field.name for field in dataclasses.fields(ModelConfig)]
    assert list(vgg)[: len(common)] == list(nin)[: len(common)] == common
    assert all(vgg[name] is nin[name] for name in common)
    assert vgg.keys() & nin.keys() == {*common, "dropout"}
    assert vgg["dropout"].help != nin["dropout"].help


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

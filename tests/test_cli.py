"""The command line: overrides of one configuration, and of a ladder of them."""

from pathlib import Path
from typing import Any

import pytest
from absl import flags

from vgg_jax import cli
from vgg_jax.config import Config, Curriculum

ROOT = Path(__file__).parents[1]
BOTH = (Config, Curriculum)


def parse(name: str, *arguments: str, accepts: tuple[type, ...] = BOTH) -> Any:
    values = cli.new_flags()
    flags.DEFINE_string("workdir", None, "folder", flag_values=values)
    path = str(ROOT / "configs" / f"{name}.py")
    cli.parse(["train.py", "--config", path, *arguments], values, accepts=accepts)
    return values


def test_overrides_have_the_fields_types() -> None:
    values = parse(
        "vgg16",
        "--config.batch_size=128",
        "--config.model.dropout",
        "0.25",
        "--workdir=runs/a",
        "--config.evaluation.scales=(224,)",
        "--noconfig.data.flip",
        "--config.init_from=vgg11",
    )
    config = values.config
    assert isinstance(config, Config)
    assert config.batch_size == 128 and config.model.dropout == 0.25
    assert config.evaluation.scales == (224,) and config.data.flip is False
    assert config.init_from == "vgg11" and values.workdir == "runs/a"


def test_an_override_reaches_every_rung_and_leaves_the_rest() -> None:
    before = parse("curriculum").config
    after = parse("curriculum", "--config.data.data_dir=/there").config
    assert isinstance(after, Curriculum) and list(after.rungs) == list(before.rungs)
    assert {rung.data.data_dir for rung in after.rungs.values()} == {"/there"}
    for name, rung in after.rungs.items():
        rung.data.data_dir = before.rungs[name].data.data_dir
    assert after == before


@pytest.mark.parametrize(
    "override",
    [
        "--config.optimizer.learning_rate=0.1",
        "--config.model.name=vgg11",
        "--config.data.scale_max=600",
        "--config.init_from=vgg11",
    ],
)
def test_what_differs_between_rungs_is_not_overridden(override: str) -> None:
    with pytest.raises(cli.UsageError, match="they differ") as error:
        parse("curriculum", override)
    assert "in vgg16_384" in str(error.value)


def test_a_ladder_is_refused_where_one_run_is_meant() -> None:
    with pytest.raises(cli.UsageError, match=r"config\.Config, got Curriculum"):
        parse("curriculum", accepts=(Config,))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.batch_sise=3", "did you mean 'batch_size'"),
        ("--config.batch_size=many", "batch_size=many"),
        ("--wrkdir=a", "wrkdir"),
        ("extra", "unexpected argument 'extra'"),
        ("--config.model.final_relu=True", "model.final_relu"),
        ("--noconfig.data.flop", "did you mean 'data.flip'"),
    ],
)
@pytest.mark.parametrize("name", ["nin_imagenet", "curriculum"])
def test_mistakes_are_named(name: str, argument: str, expected: str) -> None:
    with pytest.raises((cli.UsageError, flags.Error)) as error:
        parse(name, argument)
    assert expected in str(error.value)


def test_a_setting_of_another_kind_of_network_is_named() -> None:
    assert parse("vgg16", "--config.model.head=paper").config.model.head == "paper"
    with pytest.raises(cli.UsageError, match=r"model\.head.* of nin_imagenet"):
        parse("nin_imagenet", "--config.model.head=paper")

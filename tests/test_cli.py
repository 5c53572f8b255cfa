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
        ("--config.model=vgg16", "no setting 'model'"),
        ("--config.data.mean=grey", "expected numbers, as --config.data.mean=1,2"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Config(model=VGGConfig(name='vgg11'), batchsize=3)", "mean 'batch_size'"),
        ("Config(model=VGGConfig(nam='vgg11'))", "did you mean 'name'"),
        ("Configg()", "NameError: name 'Configg' is not defined"),
        ("(", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_configuration_file_is_one_line(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"from vgg_jax.config import *\n\ndef get_config():\n    return {text}\n"
    )
    with pytest.raises(cli.UsageError) as error:
        cli.parse(["train.py", f"--config={path}"], cli.new_flags())
    message = str(error.value)
    assert message.startswith(f"cannot use {path}: ") and expected in message
    assert "\n" not in message


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(cli.UsageError, match="no configuration file"):
        cli.parse(["train.py", f"--config={tmp_path}"], cli.new_flags())


def test_ctrl_c_ends_a_script_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        cli.finish(work)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped\n"

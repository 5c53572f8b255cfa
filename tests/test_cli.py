"""The command line: overrides of one configuration, and of a ladder of them."""

import re
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
    assert isinstance(after, Curriculum) and list(after.runs) == list(before.runs)
    assert {run.data.data_dir for run in after.runs.values()} == {"/there"}
    for name, run in after.runs.items():
        run.data.data_dir = before.runs[name].data.data_dir
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
        ("--config.data.mean=gray", "data.mean of tuple[float, ...], got ('gray',)"),
    ],
)
@pytest.mark.parametrize("name", ["nin_imagenet", "curriculum"])
def test_mistakes_are_named(name: str, argument: str, expected: str) -> None:
    with pytest.raises((ValueError, flags.Error)) as error:
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.num_classes = 10.5", "expected model.num_classes of int, got 10.5"),
        ("model.dtype = float", "model.dtype of str, got <class 'float'>"),
        ("batch_size = '128'", "expected batch_size of int, got '128'"),
        ("batch_size = True", "expected batch_size of int, got True"),
        ("remat = 1", "expected remat of bool, got 1"),
        ("data.mean = 72.9", "data.mean of tuple[float, ...], got 72.9"),
        ("data.std = [1.0]", "data.std of tuple[float, ...], got [1.0]"),
        ("evaluation.scales = (2.5,)", "scales of tuple[int, ...], got (2.5,)"),
        ("optimizer = None", "expected optimizer of OptimizerConfig, got None"),
        ("init_from = 3", "expected init_from of str | None, got 3"),
        ("batch_sise = 3", "no setting batch_sise: did you mean 'batch_size'"),
        ("data.crops = 3", "no setting data.crops: did you mean 'crop'"),
    ],
)
def test_a_setting_of_another_type_is_named(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import vgg16\n\ndef get_config():\n"
        f"    config = vgg16.get_config()\n    config.{text}\n    return config\n"
    )
    for flag in ([], ["--config.seed=1"]):
        with pytest.raises(ValueError, match=re.escape(expected)):
            cli.parse(["train.py", f"--config={path}", *flag], cli.new_flags())


def test_layers_by_name_on_the_command_line() -> None:
    flag = "--config.optimizer.trained_layers=('fc6','fc8')"
    assert parse("vgg16", flag).config.optimizer.trained_layers == ("fc6", "fc8")


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


def test_scales() -> None:
    assert cli.scales(["256", "384"]) == (256, 384)
    assert cli.scales([]) == ()
    for text in ("0", "-3", "1e3", "", "256384"):
        with pytest.raises(cli.UsageError, match=r"256,384,512.* up to 10,000.* got"):
            cli.scales(["32", text])

"""The command line: flags, settings, what mistakes are answered with, exit codes."""

import argparse
import errno
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from vgg_jax import cli, distributed
from vgg_jax.config import Config, Curriculum, from_dict, settings, to_dict
from vgg_jax.config_file import parse_value
from vgg_jax.files import explain_os_error
from vgg_jax.models import MODELS
from vgg_jax.training.workdir.facts import claim

Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[1]
BOTH = (Config, Curriculum)
COMMANDS = [
    *("train", "eval", "predict"),
    *("vgg_jax.data.prepare.__main__", "vgg_jax.features.svm"),
    "vgg_jax.export.__main__",
    *("vgg_jax.localization.__main__", "vgg_jax.report.__main__"),
    *("vgg_jax.tools.bucket_cost", "vgg_jax.tools.color_pca"),
    *("vgg_jax.tools.crop_vs_dense", "vgg_jax.tools.init_check"),
    *("vgg_jax.tools.gpu_check", "vgg_jax.tools.summary", "vgg_jax.tools.tpu_check"),
    *("vgg_jax.tools.whitening", "vgg_jax.weights.__main__"),
]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def new_parser(accepts: tuple[type, ...] = BOTH) -> cli.Parser:
    parser = cli.Parser("python train.py", "Trains.", config=accepts)
    parser.add_workdir("folder of the run")
    return parser


def parse(name: str, *arguments: str, accepts: tuple[type, ...] = BOTH) -> Any:
    return new_parser(accepts).read(["--config", f"configs/{name}.py", *arguments])


def test_overrides_have_the_fields_types() -> None:
    values = parse(
        "vgg16",
        "--config.batch_size=128",
        "--config.model.dropout",
        "0.25",
        "--workdir=runs/a",
        "--config.evaluation.scales=(224,)",
        "--config.data.mean=1,2.5, 3",
        "--config.data.flip=False",
        "--config.remat",
        "--config.init_from=vgg11",
    )
    config = values.config
    assert isinstance(config, Config)
    assert config.batch_size == 128 and config.model.dropout == 0.25
    assert config.evaluation.scales == (224,) and config.data.flip is False
    assert config.data.mean == (1.0, 2.5, 3.0) and config.remat is True
    assert config.init_from == "vgg11" and values.workdir == Path("runs/a")


@pytest.mark.parametrize("text", ["", "None"])
def test_a_setting_that_can_be_none_is_emptied(text: str) -> None:
    assert parse("vgg16_384").config.init_from == "vgg16"
    emptied = parse("vgg16_384", f"--config.init_from={text}").config
    assert emptied.init_from is None
    assert parse_value(int | None, text) is None
    assert parse_value(int | None, "3") == 3


def test_a_runs_folder_has_the_name_of_its_configuration() -> None:
    assert parse("vgg16").workdir == Path("runs/vgg16")
    for flags, expected in (
        ([], [Path("runs/vgg16")]),
        (["--workdir=a", "--workdir=b"], [Path("a"), Path("b")]),
    ):
        parser = cli.Parser("python eval.py", None, config=(Config,))
        parser.add_workdir("folder", several=True)
        assert parser.read(["--config=configs/vgg16.py", *flags]).workdir == expected


def test_weights_stand_in_the_place_of_a_run() -> None:
    def read(*flags: str) -> argparse.Namespace:
        parser = cli.Parser("python eval.py", None, config=(Config,))
        parser.add_workdir("folder", several=True, or_weights=True)
        return parser.read(["--config=configs/vgg16.py", *flags])

    values = read("--weights=a/b", "--weights=c")
    assert (values.workdir, values.weights) == (None, ["a/b", "c"])
    assert read("--weights=c", "--workdir=d").workdir == [Path("d")]
    alone = cli.Parser("python predict.py", None)
    alone.add_workdir("folder", or_weights=True)
    assert alone.read(["--weights=a", "--source=oxford"]).source == "oxford"
    with pytest.raises(cli.UsageError, match="--workdir DIR, or --weights NAME"):
        alone.read([])


def test_an_override_reaches_every_run_and_leaves_the_rest() -> None:
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
def test_what_differs_between_runs_is_not_overridden(override: str) -> None:
    with pytest.raises(cli.UsageError, match="they differ") as error:
        parse("curriculum", override)
    assert "in vgg16_384" in str(error.value)


def test_a_curriculum_is_refused_where_one_run_is_meant() -> None:
    message = r"config\.Config, got Curriculum; give .* one of its runs: vgg11, vgg13, "
    with pytest.raises(cli.UsageError, match=message):
        parse("curriculum", accepts=(Config,))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.batch_sise=3", "did you mean '--config.batch_size'"),
        ("--config.bacth_size=3", "did you mean '--config.batch_size'"),
        ("--batch_size=128", "did you mean '--config.batch_size'"),
        ("--config.model.batch_size=3", "did you mean '--config.batch_size'"),
        ("--dropout=0.1", "did you mean '--config.model.dropout'?"),
        ("--config.Data.Crop=3", "did you mean '--config.data.crop'?"),
        ("--CONFIG.BATCH_SIZE=3", "did you mean '--config.batch_size'"),
        ("--noconfig.data.flip", "did you mean '--config.data.flip'?"),
        ("--noconfig.data.flop", "did you mean '--config.data.flip'"),
        ("--worddir=a", "no flag '--worddir': did you mean '--workdir'?"),
        ("--work=a", "no flag '--work': did you mean '--workdir'?"),
        ("--quick", "no flag '--quick': --help lists its flags"),
        ("--config.model.stem=1", "no flag '--config.model.stem'"),
        ("--config.model=vgg16", "no flag '--config.model'"),
        ("--config.batch_size=many", "batch_size: expected a whole number, got 'many'"),
        ("--config.batch_size=1.5", "batch_size: expected a whole number, got '1.5'"),
        ("--config.batch_size=", "batch_size: expected a whole number, got ''"),
        ("--config.seed=-1", "expected seed in [0, 4294967296), got -1"),
        ("--config.remat=maybe", "remat: expected true or false, got 'maybe'"),
        ("--config.localization=pcr", "expected LocalizationConfig, got 'pcr'"),
        (
            "--config.data.mean=gray",
            "data.mean: expected tuple[float, ...], got 'gray'",
        ),
        ("--config.model.init=Glorott", "'Glorott': did you mean 'glorot'"),
        ("--config.optimizer.name=sdg", "optimizer.name 'sdg': did you mean 'sgd'"),
        ("--config.optimizer.schedule=cos", "schedule 'cos': did you mean 'cosine'"),
        ("--config.data.dataset=cifar", "data.dataset 'cifar': did you mean 'cifar"),
        ("--config.data.dataset=xyz", "imagenet2012, folder, tfds:NAME"),
        ("--workdir", "--workdir: expected one argument"),
        ("--workdir=", "--workdir: expected a folder, got ''"),
        ("--config.evaluation.bucket_ratios=", "bucket_ratios of at least one value"),
        ("extra", "unexpected argument 'extra'; settings are --config.NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("name", ["nin_imagenet", "curriculum"])
def test_mistakes_are_answered_with_what_was_meant(
    name: str, argument: str, expected: str
) -> None:
    with pytest.raises(cli.UsageError) as error:
        parse(name, argument)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_name_of_a_network_is_looked_up() -> None:
    with pytest.raises(cli.UsageError, match=r"model\.name 'VGG16': did you mean"):
        parse("vgg16", "--config.model.name=VGG16")


def test_a_set_that_tensorflow_datasets_prepared_may_have_any_name() -> None:
    config = parse("vgg16", "--config.data.dataset=tfds:mnist").config
    assert config.data.dataset == "tfds:mnist"


def test_a_setting_of_another_kind_of_network_is_named() -> None:
    assert parse("vgg16", "--config.model.head=paper").config.model.head == "paper"
    with pytest.raises(cli.UsageError, match=r"no flag '--config\.model\.head'"):
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
        new_parser().read([f"--config={path}"])
    message = str(error.value)
    assert message.startswith(f"cannot use {path}: ") and expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.num_classes = 10.5", "model.num_classes of int | None, got 10.5"),
        ("model.dtype = float", "model.dtype of str | None, got <class 'float'>"),
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
        ("batch_size = 0", "expected batch_size in [1, 1048576], got 0"),
    ],
)
def test_a_wrong_setting_of_a_file_is_named(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import vgg16\n\ndef get_config():\n"
        f"    config = vgg16.get_config()\n    config.{text}\n    return config\n"
    )
    for flag in ([], ["--config.seed=1"]):
        with pytest.raises(cli.UsageError, match=re.escape(expected)):
            new_parser().read([f"--config={path}", *flag])


def test_layers_by_name_on_the_command_line() -> None:
    for text in ("('fc6','fc8')", '("fc6", "fc8")', "fc6,fc8"):
        flag = f"--config.optimizer.trained_layers={text}"
        assert parse("vgg16", flag).config.optimizer.trained_layers == ("fc6", "fc8")
    flag = "--config.optimizer.layer_rates=conv=0.1, fc8=2"
    config = parse("vgg16", flag).config
    assert config.optimizer.layer_rates == {"conv": 0.1, "fc8": 2}
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    for text, message in (("conv", "names and numbers such as"), ("conv=-1", "in [0,")):
        with pytest.raises(cli.UsageError, match=re.escape(message)):
            parse("vgg16", f"--config.optimizer.layer_rates={text}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "say which configuration: --config FILE; known are configs/curriculum.py"),
        (["--config"], "say which configuration"),
        (["--config", "vgg16"], "file vgg16: did you mean 'configs/vgg16.py'?"),
        (["--config=VGG16.py"], "VGG16.py: did you mean 'configs/vgg16.py'?"),
        (["--config=configs/vgg61.py"], "did you mean 'configs/vgg1"),
        (["--config=configs"], "no configuration file configs"),
        (
            ["--config=configs/imagenet.py"],
            "configs/imagenet.py is no configuration, for it has no function "
            "get_config(); those beside it are configs/curriculum.py, ",
        ),
        (["--config=configs/vgg16.py", "--wrkdir=3"], "did you mean '--workdir'"),
    ],
)
def test_a_configuration_file_that_is_none(arguments: list[str], expected: str) -> None:
    with pytest.raises(cli.UsageError) as error:
        new_parser().read(arguments)
    assert expected in str(error.value)
    assert "configs/imagenet.py, " not in str(error.value)


def test_a_configuration_imports_its_own_neighbors_wherever_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "configs"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (elsewhere / "imagenet.py").write_text("imagenet = None")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *map(os.path.abspath, sys.path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    imported = importlib.import_module("configs.imagenet")
    before = list(sys.path)
    config = new_parser().read([f"--config={ROOT}/configs/vgg16.py"]).config
    assert config.model.name == "vgg16"
    assert sys.modules["configs.imagenet"] is imported and sys.path == before


@pytest.mark.parametrize("folder", ["json", "vgg_jax"])
def test_a_folder_with_the_name_of_a_library_does_not_replace_it(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / folder / "mine.py"
    path.parent.mkdir()
    shutil.copy("configs/imagenet.py", path)
    with path.open("a") as file:
        file.write("\n\ndef get_config():\n    import json.decoder\n")
        file.write("    return imagenet('vgg16')\n")
    assert new_parser().read([f"--config={path}"]).config == parse("vgg16").config


def test_scales() -> None:
    assert cli.scales("256,384") == (256, 384)
    for text in ("32,0", "-3", "1e3", "", "256384"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"256,384.* up to 10,000"):
            cli.scales(text)


# Help


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> cli.Parser:
    """The parser that a command makes, without running the command."""
    made: list[cli.Parser] = []

    def command(main: Any, parser: cli.Parser, arguments: Any) -> int:
        made.append(parser)
        return 0

    monkeypatch.setattr(cli, "command", command)
    importlib.import_module(name).main([])
    return made[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_each_flag(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    doc = importlib.import_module(name).__doc__
    assert doc is not None and doc.strip() in text
    parser = parser_of(name, monkeypatch)
    assert parser.prog in doc  # an example of a call
    for action in parser._actions:
        for flag in action.option_strings[:1]:
            assert flag in text
        assert action.help, (action.dest, "says nothing of itself")
    typed = {flag for flag in re.findall(r"--\w[\w.]*", doc) if flag != "--config"}
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert {flag for flag in typed if not flag.startswith("--config.")} <= known


@pytest.mark.parametrize("script", ["train.py", "eval.py", "predict.py"])
def test_a_script_is_the_command(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python {script}")


@pytest.mark.parametrize("name", ["train", "eval", "vgg_jax.tools.tpu_check"])
def test_help_with_a_configuration_lists_every_setting(
    name: str, capsys: Capture
) -> None:
    main = importlib.import_module(name).main
    with pytest.raises(SystemExit) as end:
        main(["--config=configs/nin_imagenet.py", "--config.batch_size=3", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    config = parse("nin_imagenet").config
    for setting, declared, value in settings(config):
        assert f"--config.{setting} " in text
        assert declared.help in text
        if not isinstance(value, bool):
            assert f"--config.{setting} {value} " in text
        entry = text.split(f"--config.{setting} ")[1].split("--config.")[0]
        assert declared.interval in entry
        assert all(choice in entry for choice in declared.choices)
        assert ("a resumed run may change it" in entry) == declared.resumable
    assert f"one of {', '.join(MODELS)}" in text
    assert "[--config.NAME=VALUE ...]" in text


def test_help_of_a_curriculum_says_where_its_runs_differ(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        parse("curriculum", "--help")
    text = capsys.readouterr().out
    assert "--config.model.name DIFFERS" in text
    assert "--config.batch_size 256" in text


# Exit codes


def run_command(main: Callable[[argparse.Namespace], int], *arguments: str) -> int:
    parser = cli.Parser("command", None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    return cli.command(main, parser, arguments)


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def main(values: argparse.Namespace) -> int:
        raise error

    return main


def test_the_code_is_that_of_main(capsys: Capture) -> None:
    for code in (cli.DONE, cli.FAILED, cli.STOPPED + 15):
        assert run_command(lambda values, code=code: code) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("too large"), 1, "error: too large"),
        (RuntimeError("no memory"), 1, "error: no memory"),
        (ImportError("install it"), 1, "error: install it"),
        (FileNotFoundError("no run"), 1, "error: no run"),
        (cli.UsageError("which?"), 2, "error: which?"),
        (distributed.LostHost("nobody came"), 75, "error: nobody came"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "stopped"),
    ],
)
def test_an_error_is_one_line_and_its_code(
    error: BaseException, code: int, line: str, capsys: Capture
) -> None:
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_command_line_that_cannot_be_followed_runs_nothing(capsys: Capture) -> None:
    assert run_command(raising(AssertionError("it ran")), "--outptu=a") == 2
    expected = "error: command has no flag '--outptu': did you mean '--output'?\n"
    assert capsys.readouterr().err == expected


def test_traceback_shows_where_an_error_came_from(capsys: Capture) -> None:
    assert run_command(raising(ValueError("too large")), "--traceback") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "raise error" in error
    assert error.endswith("\nerror: too large\n")


def test_an_error_of_the_program_itself_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        run_command(raising(AssertionError("a bug")))


def test_an_error_of_the_program_on_one_of_several_hosts_ends_all(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def abandon(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "abandon", abandon)
    with pytest.raises(SystemExit, match="1"):
        run_command(raising(AssertionError("a bug")))
    assert capsys.readouterr().err.endswith("AssertionError: a bug\n")


# Errors of the operating system


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "--output: give one that you may read and write"),
        (errno.EROFS, "--output: give one on a disk that can be written to"),
        (errno.ENOTDIR, "--output: that is a file; give a folder"),
        (errno.ENOSPC, "--output: free some space, or give one on another disk"),
    ],
)
def test_an_os_error_names_the_flag_and_the_remedy(
    code: int, remedy: str, capsys: Capture
) -> None:
    for place in ("out", "out/page.html.partial", "."):
        path = os.path.abspath(place)
        failed = run_command(raising(OSError(code, os.strerror(code), path)))
        assert failed == 1
        shown = path.removesuffix(".partial")
        expected = f"error: {shown}: {os.strerror(code)}; {remedy}\n"
        assert capsys.readouterr().err == expected


def test_an_os_error_elsewhere_names_no_flag() -> None:
    error = OSError(errno.EACCES, "Permission denied", "/elsewhere/file")
    paths = [("--output", Path("out")), ("--config.data.data_dir", Path("~/data"))]
    assert explain_os_error(error, paths) == "/elsewhere/file: Permission denied"
    full = explain_os_error(OSError(errno.ENOSPC, "No space left on device"), paths)
    assert "No space left on device; --output or --config.data.data_dir: free" in full
    data = OSError(
        errno.EACCES, "Permission denied", str(Path("~/data/a").expanduser())
    )
    assert "; --config.data.data_dir: give one" in explain_os_error(data, paths)


@pytest.mark.parametrize(
    ("place", "flag"),
    [
        ("/runs", "--workdir"),
        ("/runs/log", "--workdir"),
        ("/runs/data", "--config.data.data_dir"),
        ("/runs/data/train/0.png", "--config.data.data_dir"),
        ("/", "--workdir or --config.data.data_dir"),
    ],
)
def test_an_os_error_blames_the_flag_whose_path_is_nearest(
    place: str, flag: str
) -> None:
    paths = [
        ("--workdir", Path("/runs")),
        ("--config.data.data_dir", Path("/runs/data")),
    ]
    error = OSError(errno.EACCES, "Permission denied", place)
    assert f"; {flag}: give one" in explain_os_error(error, paths)


def test_paths_are_those_of_flags_and_settings() -> None:
    parser = new_parser()
    arguments = ["--config=configs/vgg16.py", "--config.data.data_dir=/data"]
    values = parser.read([*arguments, "--workdir=/runs"])
    assert {*parser.paths(values)} >= {
        ("--workdir", Path("/runs")),
        ("--config.data.data_dir", Path("/data")),
    }


# A workdir that another run has


def train_at(workdir: Path, *more: str, config: str = "vgg16") -> int:
    """Trains on data that is not there: the error says what was looked at first."""
    return train.main(
        [
            *(f"--config=configs/{config}.py", f"--workdir={workdir}"),
            *("--config.data.dataset=folder", "--config.data.data_dir=/nowhere"),
            *more,
        ]
    )


def test_a_workdir_of_other_settings_is_refused_before_data_is_opened(
    tmp_path: Path, capsys: Capture
) -> None:
    claim(tmp_path, parse("vgg16", "--config.seed=3").config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    assert train_at(tmp_path) == 1
    error = capsys.readouterr().err
    assert "holds a run with other settings" in error and "seed: 3 there" in error
    assert "/nowhere: " not in error and "no folder" not in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_curriculum_is_refused_for_the_folder_of_its_last_run(
    tmp_path: Path, capsys: Capture
) -> None:
    runs = parse("curriculum", "--config.seed=3").config.runs
    (tmp_path / "vgg19_jitter").mkdir()
    claim(tmp_path / "vgg19_jitter", runs["vgg19_jitter"])
    assert train_at(tmp_path, config="curriculum") == 1
    printed = capsys.readouterr()
    assert "vgg19_jitter holds a run with other settings" in printed.err
    assert "run 1 of 11" not in printed.out


def test_a_workdir_that_cannot_be_written_to_is_refused_before_data_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "file"
    file.touch()
    for workdir in (file, file / "run"):
        assert train_at(workdir) == 1
        remedy = "--workdir: that is a file; give a folder"
        assert capsys.readouterr().err == f"error: {file}: Not a directory; {remedy}\n"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert train_at(tmp_path / "a" / "b") == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: Permission denied; --workdir: give one that you may read "
        "and write\n"
    )
    assert not (tmp_path / "a").exists()


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves it to the program in `--workdir=~/runs`."""
    monkeypatch.setenv("HOME", "/home/me")
    assert os.fspath(cli.path("~/runs")) == "/home/me/runs"
    assert os.fspath(cli.path("runs/~")) == "runs/~"

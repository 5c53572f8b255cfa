"""From a folder of pictures to a page in one command, with and without weights."""

from pathlib import Path
from typing import Any

import pytest

import train
from configs.transfer import get_config
from tests.shapes import draw_shapes
from tests.training.test_pretrained import save_weights
from vgg_jax import cli, config_file
from vgg_jax.config import Config, validate

ROOT = Path(__file__).parents[2]
TRANSFER = str(ROOT / "configs" / "transfer.py")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw_shapes(tmp_path / "pictures", {"train": 20, "test": 3}, width=36)
    return tmp_path / "pictures"


def read(*flags: str) -> Any:
    parser = cli.Parser("python train.py", None, config=(Config,))
    return parser.read([f"--config={TRANSFER}", *flags]).config


def test_what_depends_on_the_pictures_is_decided_and_printed(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read(f"--config.data.data_dir={pictures}", "--config.seed", "3")
    assert config.data.data_dir == str(pictures) and config.seed == 3
    assert config.model.name == "vgg11_bn" and config.model.num_classes is None
    assert config.optimizer.metric == "loss" and config.optimizer.schedule == "cosine"
    assert config.data.validation_fraction == 0.25
    printed = capsys.readouterr().out
    assert "60 pictures of 3 classes: about 15 are held out" in printed
    assert "whose loss chooses" in printed and "init_from=FILE" in printed
    # Another flag with the same last part changes what it names, and no more.
    assert read("--config.model.name=vgg13_bn").model.name == "vgg13_bn"


def test_with_weights_the_last_layer_alone_learns(pictures: Path) -> None:
    flags = (f"--config.data.data_dir={pictures}", "--config.init_from", "a/vgg19.pth")
    config = read(*flags)
    assert config.model.name == "vgg19" and config.init_from == "a/vgg19.pth"
    assert config.optimizer.trained_layers == ("fc8",) and config.optimizer.keep_maps
    assert read("--config.init_from=weights.ckpt").model.name == "vgg16"
    for name, network in (
        ("vgg19-dcbb9e9d.pth", "vgg19"),
        ("vgg16_bn-6c64b313.pth", "vgg16_bn"),
        ("keras/vgg19_notop", "vgg19"),
    ):
        assert read(f"--config.init_from={name}").model.name == network
    assert read("--config.init_from=").model.name == "vgg11_bn"


@pytest.mark.parametrize("init_from", ["", "torchvision.pth"])
def test_every_choice_fits_itself(
    init_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for images, classes in ((0, 0), (30, 3), (600, 40), (20_000, 100)):
        monkeypatch.setattr(
            "configs.transfer.count_pictures", lambda _, n=(images, classes): n
        )
        config = get_config("there", init_from)
        validate(config)
        assert (config.optimizer.metric == "loss") == (images < 2000)


def test_a_parameter_takes_the_flag_of_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import vgg16\n\n\ndef get_config(init_from='', seed='7'):\n"
        "    config = vgg16.get_config()\n"
        "    config.seed = int(seed) + len(init_from)\n    return config\n"
    )
    flags = {"init_from": "abc", "data_dir": "there"}
    assert config_file.load(path, (Config,)).seed == 7
    assert config_file.load(path, (Config,), flags).seed == 10


@pytest.mark.slow
def test_one_command_from_pictures_to_a_page(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, weights = tmp_path / "run", tmp_path / "vgg11.safetensors"
    flags = (
        f"--config={TRANSFER}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={pictures}",
        f"--config.init_from={weights}",
        "--config.model.width=0.05",
        "--config.data.crop=32",
        "--config.data.scale_min=32",
        "--config.data.scale_max=32",
        "--config.evaluation.center_scale=32",
        "--config.evaluation.scales=32",
        "--config.num_epochs=2",
        "--config.batch_size=8",
    )
    config = read(*flags[2:])
    config.model.num_classes = 5
    save_weights(weights, config, seed=0)
    for _ in range(2):  # the second time there is nothing to train
        assert train.main(flags) == cli.DONE
    printed = capsys.readouterr().out
    assert "random (glorot): fc8" in printed and "report.html" in printed
    assert "kept the maps before the first layer that learns" in printed
    assert (workdir / "report.html").is_file() and (workdir / "eval.json").is_file()

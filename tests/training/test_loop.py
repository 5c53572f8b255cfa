"""The run: what it notices before it begins, and at its last step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vgg_jax.data.color import computed_path
from vgg_jax.training.loop import Trainer, train
from vgg_jax.training.metrics import TrainingDiverged
from vgg_jax.training.workdir import WorkdirMismatch, is_finished


@pytest.mark.usefixtures("one_device")
def test_a_network_broken_by_the_last_step_has_not_finished(
    tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config(rate=1e38)
    config.num_epochs = 0.01  # one step, whose own loss is still a number
    with pytest.raises(TrainingDiverged, match=r"loss after step 1.*none yet"):
        train(config, tmp_path)
    assert not is_finished(tmp_path)


def test_a_missing_test_part_is_told_before_training(
    shapes: Path, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shapes / "train", tmp_path / "pictures" / "train")
    config = tiny_config()
    config.data.data_dir = str(tmp_path / "pictures")
    Trainer(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert "warning: nothing for eval.py" in said and "pictures/test" in said
    Trainer(tiny_config(), tmp_path / "other")
    assert capsys.readouterr().err == ""


def test_a_run_does_not_go_on_with_other_data(
    shapes: Path, tiny_config: Any, tmp_path: Path
) -> None:
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(shapes, pictures)
    config = tiny_config()
    config.data.data_dir = str(pictures)
    config.data.color_shift, config.data.color_pca = 0.1, "computed"
    axes = computed_path(config.data)
    axes.write_text(json.dumps({"axes": [[30.0]]}))
    Trainer(config, run)
    axes.write_text(json.dumps({"axes": [[31.0]]}))
    Trainer(config, run)  # nothing is trained yet
    (run / "checkpoints" / "5").mkdir(parents=True)
    Trainer(config, run)
    axes.write_text(json.dumps({"axes": [[30.0]]}))
    with pytest.raises(WorkdirMismatch, match=r"shift: \[\[31.0\]\] there, \[\[30.0"):
        Trainer(config, run)
    axes.write_text(json.dumps({"axes": [[31.0]]}))
    bars = pictures / "train" / "bar"
    for i in range(30):
        shutil.copy(bars / "0.png", bars / f"another{i}.png")
    with pytest.raises(WorkdirMismatch) as error:
        Trainer(config, run)
    assert "images to train on: " in str(error.value)
    assert "images to validate with: " in str(error.value)
    (run / "data.json").unlink()
    Trainer(config, run)

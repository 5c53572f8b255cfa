"""Style transfer with a tiny network: pictures on the way, stopped and gone on with."""

import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from examples import style_transfer
from tests.losses.networks import MODEL, NORMALIZATION, photographs
from vgg_jax.losses import FeatureExtractor


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command with two pictures; the network is a tiny one."""
    monkeypatch.setattr(style_transfer, "CONTENT_LAYERS", ("relu2_1",))
    monkeypatch.setattr(style_transfer, "STYLE_LAYERS", ("relu1_1", "relu3_1"))

    def load(path: str, names: tuple[str, ...], **options: Any) -> FeatureExtractor:
        assert path == "any.pth" and options == {"pools": "average"}
        return FeatureExtractor.from_model(MODEL, names, NORMALIZATION, **options)

    monkeypatch.setattr(FeatureExtractor, "load", load)
    for seed, name in enumerate(("content.png", "style.png")):
        picture = 127.5 * (photographs(24, 36, seed=seed) + 1)
        cv2.imwrite(str(tmp_path / name), picture.astype(np.uint8))
    return [
        *(str(tmp_path / name) for name in ("content.png", "style.png")),
        "--weights=any.pth",
        "--size=24",
        "--every=2",
    ]


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return picture


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_what_was_stopped_goes_on_to_the_same_picture(
    optimizer: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*command, f"--optimizer={optimizer}"]
    whole, parts = tmp_path / "whole.png", tmp_path / "parts.png"
    assert style_transfer.main([*command, f"--output={whole}", "--steps=4"]) == 0
    assert read(whole).shape == (16, 24, 3)
    assert np.array_equal(read(tmp_path / "whole.0004.png"), read(whole))
    assert not np.array_equal(read(tmp_path / "whole.0002.png"), read(whole))

    bar = style_transfer.progress_bar

    def stopping(*arguments: Any, **options: Any) -> Any:
        made = bar(*arguments, **options)
        update = made.update
        made.update = lambda n: (update(n), os.kill(os.getpid(), signal.SIGINT))
        return made

    monkeypatch.setattr(style_transfer, "progress_bar", stopping)
    stopped = style_transfer.main([*command, f"--output={parts}", "--steps=4"])
    assert stopped == 130 and (tmp_path / "parts.0001.png").exists()
    assert not parts.exists()
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(style_transfer, "progress_bar", bar)
    assert style_transfer.main([*command, f"--output={parts}", "--steps=4"]) == 0
    assert np.array_equal(read(parts), read(whole))


def test_a_picture_of_other_settings_is_not_gone_on_with(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, f"--output={tmp_path / 'styled.png'}", "--optimizer=adam"]
    assert style_transfer.main([*command, "--steps=1"]) == 0
    assert style_transfer.main([*command, "--steps=1", "--style_weight=7"]) == 1
    assert "is of other pictures or settings" in capsys.readouterr().err
    (tmp_path / "content.png").write_bytes(b"no picture")
    assert style_transfer.main(command) == 1
    assert "content.png: expected a picture" in capsys.readouterr().err

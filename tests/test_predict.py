"""The classes of pictures from anywhere."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import vgg_jax
from tests.evaluation.fixtures import NAMES
from vgg_jax import predict as module
from vgg_jax.config import Config, LocalizationConfig
from vgg_jax.models import ConvNet
from vgg_jax.predict import Classifier, load_run, predict, predict_files
from vgg_jax.preprocessing import Normalization
from vgg_jax.report.figures import draw_heat
from vgg_jax.report.heat import heat_map
from vgg_jax.training.workdir.facts import write_class_names


def test_the_first_classes_and_their_map(
    classifier: Classifier, config: Config, small_picture: np.ndarray
) -> None:
    found = predict(classifier, small_picture, top=3)
    expected = np.asarray(
        vgg_jax.dense_posteriors(
            classifier.model,
            small_picture,
            classifier.scales,
            mean=config.data.mean,
            std=config.data.std,
        )
    )
    order = np.argsort(-expected)[:3]
    assert found.classes == tuple(NAMES[i] for i in order)
    np.testing.assert_allclose(found.posteriors, expected[order], rtol=1e-5)
    # The heat map is of the whole picture at the scale of training.
    assert min(found.heat.scores.shape) >= 7
    assert found.heat.image.shape == (32, 45, 3)
    heat = heat_map(
        classifier.model,
        small_picture,
        int(order[0]),
        classifier.crop,
        classifier.normalization,
    )
    np.testing.assert_array_equal(found.heat.scores, heat.scores)
    assert len(predict(classifier, small_picture, top=99).classes) == len(NAMES)
    with pytest.raises(ValueError, match="at least 1 class, got 0"):
        predict(classifier, small_picture, top=0)


def test_files(
    classifier: Classifier,
    small_picture: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    for name in ("one.png", "b/one.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), small_picture[..., ::-1])
    (tmp_path / "torn.png").write_bytes((tmp_path / "one.png").read_bytes()[:50])
    files = [
        tmp_path / name for name in ("one.png", "torn.png", "none.png", "b/one.png")
    ]
    assert predict_files(classifier, [*files, files[0]], tmp_path / "maps", top=2) == 2
    output = capsys.readouterr()
    assert "torn.png" in output.err and "none.png" in output.err
    expected = predict(classifier, small_picture, top=2)
    line = f"{expected.posteriors[0]:7.2%}  {expected.classes[0]}"
    assert output.out.count(line) == 2
    maps = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert maps == ["b_one.png.heat.png", f"{tmp_path.name}_one.png.heat.png"]
    drawn = cv2.imread(str(tmp_path / "maps" / maps[0]))
    draw_heat(
        expected.heat,
        classifier.crop,
        expected.classes[0],
        expected.posteriors[0],
        tmp_path / "expected.png",
    )
    assert min(drawn.shape[:2]) >= 224  # a map of 32x45, large enough to look at
    np.testing.assert_array_equal(drawn, cv2.imread(str(tmp_path / "expected.png")))


def test_a_run(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(module, "restore_model", lambda workdir: (model, config, 7))
    write_class_names(tmp_path, NAMES)
    found = load_run(tmp_path)  # the data, /nowhere, is not needed
    assert found.class_names == NAMES
    assert found.normalization == Normalization(config.data.mean, config.data.std)
    assert found.scales == config.evaluation.scales
    # A run from before the names were kept asks its data.
    (tmp_path / "class_names.json").unlink()
    source = dataclasses.replace(make_source([(8, 8)]), class_names=("x",) * 7)
    monkeypatch.setattr(module, "open_source", lambda data, split: source)
    assert load_run(tmp_path).class_names == ("x",) * 7
    write_class_names(tmp_path, NAMES[:3])
    with pytest.raises(ValueError, match=r"names of 7 classes .* got 3"):
        load_run(tmp_path)
    config.localization = LocalizationConfig()
    with pytest.raises(ValueError, match=r"predicts boxes.* vgg_jax\.localization"):
        load_run(tmp_path)


def test_a_picture_of_too_many_pixels_is_named(
    classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((80, 80, 3), np.uint8))
    assert predict_files(classifier, [path], tmp_path / "maps") == 1
    assert f"{path}: expected at most 5,000 pixels" in capsys.readouterr().err

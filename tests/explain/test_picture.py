"""A picture explained by every method, and the drawing of it."""

from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from tests.evaluation.fixtures import NAMES
from vgg_jax import predict
from vgg_jax.config import Config
from vgg_jax.data.transforms import rescale
from vgg_jax.explain.__main__ import main
from vgg_jax.explain.picture import (
    default_layer,
    explain_picture,
    explanation_figure,
    grad_cam_heat,
)
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Layer, Relu
from vgg_jax.predict import Classifier
from vgg_jax.preprocessing import Normalization
from vgg_jax.report.heat import map_interval, occlusion_map, overlay, score_map
from vgg_jax.training.workdir import weights_folder


def test_the_layer_that_is_drawn_is_deep_and_its_map_fine() -> None:
    def layers(name: str, **options) -> tuple[Layer, ...]:
        make = vgg_jax.create_model
        return nnx.eval_shape(lambda: make(name, rngs=nnx.Rngs(0), **options)).layers

    assert default_layer(layers("vgg16"), 448) == "relu5_3"
    assert default_layer(layers("vgg16"), 224) == "relu5_3"
    assert default_layer(layers("vgg13_bn", head="global_pool"), 32) == "relu4_2"
    assert default_layer(layers("nin_cifar"), 28) == "relu_cccp5"
    assert default_layer(layers("nin_imagenet"), 224) == "relu_cccp7"


def test_grad_cam_is_hottest_where_the_class_is() -> None:
    """Class 1 is bright pixels: its score is the mean brightness above the mean."""
    model = ConvNet(
        (Conv("bright", 2, kernel=1), Relu("relu"), Conv("scores", 2, kernel=1)),
        num_classes=2,
        in_channels=1,
        rngs=nnx.Rngs(0),
    )
    model.bright.kernel[...] = jnp.array([1.0, -1.0]).reshape(1, 1, 1, 2)
    model.scores.kernel[...] = jnp.array([[0.0, 1.0], [1.0, 0.0]])[None, None]
    classifier = Classifier(
        model=model,
        class_names=("dark", "bright"),
        crop=32,
        normalization=Normalization((100.0,), (1.0,)),
        scales=(32,),
        averaging="score_map",
        max_pixels=5000,
    )
    image = np.full((32, 64, 1), 90, np.uint8)
    image[8:12, 40:44] = 220
    heat = grad_cam_heat(classifier, image, 1, "relu")
    assert heat.extent == (-0.5, 63.5, 31.5, -0.5)
    assert (heat.scores[8:12, 40:44] == heat.scores.max()).all()
    assert (heat.scores > 0).sum() == 16
    dark = grad_cam_heat(classifier, image, 0, "relu")
    assert (dark.scores > 0).sum() == 32 * 64 - 16


def test_every_method_explains_the_same_class(
    classifier: Classifier, small_picture: np.ndarray, config: Config
) -> None:
    best = explain_picture(classifier, small_picture)
    posteriors = np.asarray(predict.class_posteriors(classifier, small_picture))
    assert best.class_name == NAMES[posteriors.argmax()]
    assert best.posterior == posteriors.max()
    other = NAMES[posteriors.argmin()]
    chosen = explain_picture(
        classifier, small_picture, class_name=other, layers=("relu2", "conv1"), scale=40
    )
    at_scale = vgg_jax.dense_posteriors(
        classifier.model,
        small_picture,
        (40,),
        mean=config.data.mean,
        std=config.data.std,
    )
    label = int(posteriors.argmin())
    assert chosen.class_name == other
    assert chosen.posterior == pytest.approx(float(at_scale[label]), rel=1e-5)
    titles = [part.title for part in chosen.explanations]
    assert titles == [
        *("Grad-CAM of relu2", "Grad-CAM of conv1"),
        *("Class score map", "Occlusion"),
    ]
    assert {part.heat.image.shape for part in chosen.explanations} == {(40, 56, 3)}
    deep, shallow, scores, hidden = (part.heat for part in chosen.explanations)
    expected = grad_cam_heat(classifier, small_picture, label, "relu2")
    np.testing.assert_array_equal(deep.scores, expected.scores)
    assert deep.scores.shape == (10, 14) and shallow.scores.shape == (40, 56)
    rows = classifier.model.layers[:5]
    assert deep.extent[:2] == map_interval(rows, 56)
    assert deep.extent[:1:-1] == map_interval(rows, 40)
    for found, make in (
        (
            scores,
            score_map(classifier.model, small_picture, label, classifier.normalization),
        ),
        (
            hidden,
            occlusion_map(
                classifier.model, small_picture, label, 32, classifier.normalization
            ),
        ),
    ):
        np.testing.assert_array_equal(found.scores, make.scores)
        assert found.extent == make.extent
    bias = float(classifier.model.fc8.bias[label])
    assert f"without its bias of {bias:.2g} it is" in chosen.explanations[2].note
    with pytest.raises(ValueError, match="no class 'B': did you mean"):
        explain_picture(classifier, small_picture, class_name="B")
    with pytest.raises(ValueError, match="no layer 'relu3': did you mean 'relu2'"):
        explain_picture(classifier, small_picture, layers=("relu3",))


def test_by_default_each_method_looks_at_the_scale_of_heat_maps(
    classifier: Classifier, small_picture: np.ndarray
) -> None:
    [gradients, scores, hidden] = (
        part.heat for part in explain_picture(classifier, small_picture).explanations
    )
    crop = classifier.crop
    assert hidden.image.shape == rescale(small_picture, crop).shape
    assert gradients.image.shape == scores.image.shape == (32, 45, 3)
    assert scores.scores.shape == (1, 1)


def test_a_figure_has_a_panel_for_the_picture_and_each_method(
    classifier: Classifier, small_picture: np.ndarray
) -> None:
    explained = explain_picture(classifier, small_picture, scale=40)
    figure = explanation_figure(explained)
    *panels, legend = figure.axes
    titles = [axes.get_title("left") for axes in panels]
    assert titles == ["The picture", *(part.title for part in explained.explanations)]
    assert legend.get_xticklabels()[0].get_text() == "lowest"
    assert explained.class_name in figure.texts[0].get_text()
    for part in explained.explanations:
        assert " ".join(part.note.split()) in " ".join(
            figure.texts[1].get_text().split()
        )
    # No panel lies on another one or leaves the figure.
    boxes = [axes.get_position() for axes in panels]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
        assert not any(box.overlaps(other) for other in boxes[:i])
    drawn = panels[-1].images[0].get_array()
    small = rescale(np.asarray(drawn), 40).astype(float)
    expected = overlay(explained.explanations[-1].heat).astype(float)
    assert np.abs(small - expected).mean() < 6


def test_the_command_draws_each_picture(
    classifier: Classifier,
    small_picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    loaded = []
    monkeypatch.setattr(
        predict, "load_run", lambda workdir: loaded.append(workdir) or classifier
    )
    monkeypatch.setattr(
        weights_folder, "make_weights_folder", lambda *arguments: tmp_path / "weights"
    )
    path, torn = tmp_path / "one.png", tmp_path / "torn.png"
    cv2.imwrite(str(path), small_picture[..., ::-1])
    torn.write_bytes(path.read_bytes()[:50])
    flags = [f"--output={tmp_path / 'out'}", "--class=c", "--scale=40"]
    assert main(["--workdir", str(tmp_path), *flags, str(path)]) == 0
    explained = explain_picture(classifier, small_picture, class_name="c", scale=40)
    output = capsys.readouterr().out
    assert f"{explained.posterior:7.2%}  c" in output
    [drawing] = (tmp_path / "out").iterdir()
    assert drawing.name == "one.png.explain.png" and str(drawing) in output
    height, width = cv2.imread(str(drawing)).shape[:2]
    assert width > 1500 and 400 < height < width
    layers = ["--layers=relu1,conv2", "--weights=a/b"]
    assert main([*layers, *flags, str(path), str(torn)]) == 1
    assert "torn.png" in capsys.readouterr().err
    assert loaded == [tmp_path, tmp_path / "weights"]
    with_two = cv2.imread(str(drawing))
    assert with_two.shape[0] > height  # five panels are two rows
    assert main(["--workdir=a", "--class=x", str(path)]) == 1
    assert "no class 'x'" in capsys.readouterr().err

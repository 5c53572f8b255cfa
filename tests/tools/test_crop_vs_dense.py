"""The dense pass against crops (section 3.2): equal but for the border's padding."""

from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import images, network
from vgg_jax import ConvNet
from vgg_jax.models.layers import Conv, FullyConnected, MaxPool, Relu
from vgg_jax.tools import crop_vs_dense as module
from vgg_jax.tools.crop_vs_dense import main, relative_difference, window_score_map

TOLERANCE = 1e-5


def windows(model: ConvNet, x: np.ndarray, padding: str, **options: int) -> np.ndarray:
    graphdef, state = nnx.split(model)

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        return window_score_map(model, x, window_padding=padding, **options)

    return np.asarray(jax.jit(run)(state, jnp.asarray(x)))


def classify(model: ConvNet, x: np.ndarray) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, x))


@pytest.fixture(scope="module")
def vgg() -> ConvNet:
    return nnx.merge(*network("vgg13", width=1 / 16, num_classes=5))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return images(1, 384, 384, 3)


def test_at_the_training_size_all_are_the_classifier(vgg: ConvNet) -> None:
    crop = images(2, 224, 224, 3)
    want = classify(vgg, crop)[:, None, None]
    for padding in ("neighbors", "zero"):
        got = windows(vgg, crop, padding)
        assert relative_difference(got, want).max() < TOLERANCE
    dense = np.asarray(jax.jit(vgg.score_map)(jnp.asarray(crop)))
    assert relative_difference(dense, want).max() < TOLERANCE


def test_36_crops_at_384(vgg: ConvNet, picture: np.ndarray) -> None:
    corners = [(32 * i, 32 * j) for i in range(6) for j in range(6)]
    crops = np.concatenate([picture[:, y : y + 224, x : x + 224] for y, x in corners])
    want = classify(vgg, crops).reshape(6, 6, -1)
    zero = windows(vgg, picture, "zero")[0]
    assert zero.shape == (6, 6, 5)
    assert relative_difference(zero, want).max() < TOLERANCE
    dense = windows(vgg, picture, "neighbors")[0]
    whole = np.asarray(jax.jit(vgg.score_map)(picture))[0]
    assert relative_difference(dense, whole).max() < TOLERANCE  # two programs round
    difference = relative_difference(dense, want)
    assert difference.min() > 100 * TOLERANCE
    # A window in the image's corner has two borders in common with it.
    assert difference[[0, 0, 5, 5], [0, 5, 0, 5]].mean() < difference[1:5, 1:5].mean()


def test_only_padding_makes_the_difference(make_model: Callable) -> None:
    layers = (
        Conv("conv1", 4, kernel=3),
        Relu("relu1"),
        MaxPool("pool1", window=2, stride=2, ceil_mode=False),
        Conv("conv2", 4, kernel=3),
        Relu("relu2"),
        FullyConnected("fc8", 7, kernel=3),
    )
    model = make_model(0, layers)
    x = images(2, 31, 40, 3)
    zero, dense = (windows(model, x, p, window=12) for p in ("zero", "neighbors"))
    assert zero.shape == (2, 10, 15, 7)
    assert relative_difference(zero, dense).max() < TOLERANCE


def test_a_window_of_several_cells(picture: np.ndarray) -> None:
    model = nnx.merge(*network("nin_imagenet", width=1 / 16, num_classes=5))
    for padding, same in (("zero", True), ("neighbors", False)):
        found = windows(model, picture, padding)[0]
        assert found.shape == (6, 6, 5)
        want = classify(model, picture[:, 64:288, 96:320])
        difference = relative_difference(found[2, 3][None, None], want[None])
        assert (difference.max() < TOLERANCE) == same
        assert difference.max() < 1


def test_what_is_refused(vgg: ConvNet) -> None:
    x = jnp.zeros((1, 300, 200, 3))
    with pytest.raises(ValueError, match=r"at least the window's 224x224 .* 300x200"):
        window_score_map(vgg, x)
    with pytest.raises(ValueError, match="'zero'"):
        window_score_map(vgg, x, window=190, window_padding="zeros")
    with pytest.raises(ValueError, match="at least 224x224"):
        window_score_map(vgg, x, window=190)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(name: str, *, width: float, **_: object) -> ConvNet:
        return nnx.merge(*network(name, width=width))  # JAX's would take seconds

    monkeypatch.setattr(module, "create_model", drawn)
    photo = tmp_path / "photo.png"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (25, 30, 3), np.uint8)
    cv2.imwrite(str(photo), blocks.repeat(16, axis=0).repeat(16, axis=1))
    arguments = ["--network", "vgg11", "--width", "0.03", "--output", str(tmp_path)]
    assert main([*arguments, "--image", str(photo)]) == 0
    out = capsys.readouterr().out
    assert out.count("%") == 36 + 10
    exact = float(out.split("crop at (32, 64): ")[1].split()[0])
    assert exact < TOLERANCE
    for name in ("windows.png", "windows_stages.png"):
        assert cv2.imread(str(tmp_path / name)) is not None
    assert main([*arguments, "--image", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err

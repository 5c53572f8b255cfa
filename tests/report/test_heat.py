"""Where a score map lies on its image, and how it is laid over it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from tests.models.drawn import network
from vgg_jax.config import Config
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Layer, MaxPool, output_size
from vgg_jax.report import heat
from vgg_jax.report.heat import (
    CELLS,
    ScoreMap,
    map_interval,
    map_side,
    overlay,
    score_map,
)


def test_the_map_has_enough_cells_and_starts_at_the_crop() -> None:
    def layers(name: str, **options) -> tuple[Layer, ...]:
        make = vgg_jax.create_model
        return nnx.eval_shape(lambda: make(name, rngs=nnx.Rngs(0), **options)).layers

    assert map_side(layers("vgg16"), 224) == 448
    small = layers("vgg11", head="global_pool", ceil_mode=True)
    assert map_side(small, 28) == 210
    assert map_side(layers("nin_cifar"), 28) == 28


@pytest.mark.parametrize("side", [96, 101])
def test_where_the_map_lies(side: int) -> None:
    """A pixel that is not a number makes every cell that sees it not a number."""
    layers = (
        Conv("first", 1, kernel=5, stride=2, padding=1),
        MaxPool("pool", window=3, stride=2, ceil_mode=True),
        Conv("second", 1, kernel=3, padding=1),
        Conv("last", 1, kernel=4),
    )
    graphdef, abstract = nnx.split(
        nnx.eval_shape(
            lambda: ConvNet(
                layers,
                num_classes=1,
                in_channels=1,
                init="he",
                dtype="float32",
                rngs=nnx.Rngs(0),
            )
        )
    )
    state = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), abstract)
    model = nnx.merge(graphdef, state)
    images = np.zeros((side, side, side, 1), np.float32)
    images[np.arange(side), :, np.arange(side)] = np.nan  # one column in each
    seen = np.isnan(jax.jit(model.score_map)(images)[:, 0, :, 0])  # [column, cell]
    begin, end = map_interval(model.layers, side)
    cells = output_size(model.layers, side)
    assert seen.shape[1] == cells
    centers = begin + (np.arange(cells) + 0.5) * (end - begin) / cells
    for cell in range(2, cells - 2):  # cells that see no padding
        first, last = np.flatnonzero(seen[:, cell])[[0, -1]]
        assert (first + last) / 2 == centers[cell]


def test_score_map_of_an_image_that_is_not_square(
    model: ConvNet, config: Config
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 112, 3), np.uint8)
    found = score_map(model, image, 4, config.data.mean, config.data.std)
    pixels = np.float32((image - np.array(config.data.mean)) / config.data.std)
    expected = model.score_map(jnp.asarray(pixels[None]))[0, ..., 4]
    chex.assert_shape(found.scores, (3, 6))
    chex.assert_trees_all_close(found.scores, np.asarray(expected), atol=1e-4)
    assert found.extent[:2] == map_interval(model.layers, 112)
    assert found.extent[:1:-1] == map_interval(model.layers, 64)


def test_the_map_of_nin_is_its_last_blocks() -> None:
    """Its class activation map: the mean over space is what the network answers."""
    model = nnx.merge(*network("nin_imagenet", num_classes=5, width=0.05))
    side = map_side(model.layers, 224)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels = jnp.asarray((image[None] - 120.0) / 60)
    logits = np.asarray(model(pixels))[0]
    for label in (0, 4):
        found = score_map(model, image, label, (120.0,) * 3, (60.0,) * 3)
        assert min(found.scores.shape) >= CELLS
        np.testing.assert_allclose(found.scores.mean(), logits[label], rtol=1e-3)
        last = [layer.name for layer in model.layers if isinstance(layer, Conv)][-1]
        activation = model.features(pixels, (last,))[last][0, ..., label]
        np.testing.assert_allclose(found.scores, activation, rtol=1e-3, atol=1e-4)


def test_overlay() -> None:
    """The hottest color is where the highest score's cell is, in the image's frame."""
    scores = np.zeros((2, 4), np.float32)
    scores[1, 2] = 3
    image = np.full((40, 80, 3), 100, np.uint8)
    found = overlay(ScoreMap(image, scores, (0, 80, 40, 0)))
    assert found.shape == (40, 80, 3) and found.dtype == np.uint8
    red = found[..., 0].astype(int)
    assert np.unravel_index(red.argmax(), red.shape) == (30, 50)
    assert red[30, 50] > red[30, 40] > red[30, 30] == red[0, 0]
    # A map of one height still has a picture.
    flat = overlay(ScoreMap(image[..., :1], scores * 0, (0, 80, 40, 0)))
    assert flat.shape == (40, 80, 3) and flat.std(axis=(0, 1)).max() == 0


def test_a_long_image_goes_through_in_tiles(
    model: ConvNet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 1200, 3), np.uint8)
    whole = score_map(model, image, 4, config.data.mean, config.data.std)
    monkeypatch.setattr(heat, "TILE", 256)
    monkeypatch.setattr(heat, "_scores", None)
    tiled = score_map(model, image, 4, config.data.mean, config.data.std)
    assert tiled.extent == whole.extent
    chex.assert_trees_all_close(tiled.scores, whole.scores, atol=1e-4)


def test_an_overlay_wider_than_opencv_maps() -> None:
    scores = np.array([[0, 0, 3, 0]], np.float32)
    image = np.zeros((4, 40_000, 1), np.uint8)
    found = overlay(ScoreMap(image, scores, (0, 40_000, 4, 0)))
    assert found.shape == (4, 40_000, 3)
    assert abs(int(found[0, :, 0].argmax()) - 25_000) < 500

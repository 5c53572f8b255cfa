"""Heat maps: at which scale, where they lie on the image, and how they are drawn."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgg_jax
from tests.models.drawn import network
from vgg_jax.config import Config
from vgg_jax.data.transforms import rescale
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.inference.forward import MapHead, Network
from vgg_jax.inference.tiling import tiled_map
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv, Layer, MaxPool, output_size
from vgg_jax.preprocessing import Normalization
from vgg_jax.report import heat
from vgg_jax.report.heat import (
    BATCH,
    CELLS,
    PLACES,
    SHOWN,
    HeatMap,
    enlarge,
    explain,
    heat_map,
    map_interval,
    map_side,
    occlusion_map,
    overlay,
    score_map,
)


def test_the_map_has_enough_cells_and_starts_at_the_crop() -> None:
    def layers(name: str, **options) -> tuple[Layer, ...]:
        make = vgg_jax.create_model
        return nnx.eval_shape(lambda: make(name, rngs=nnx.Rngs(0), **options)).layers

    assert map_side(layers("vgg16"), 224) == 448
    assert map_side(layers("nin_cifar"), 28) == 28
    # It would have them at 210 pixels, where nothing looks as it did in training.
    assert map_side(layers("vgg11", head="global_pool", ceil_mode=True), 28) is None


def bright_square(row: int, column: int) -> tuple[ConvNet, np.ndarray]:
    """A classifier whose class 1 is a bright square, and an image that has one.

    The scores are the mean over space of 0 and of the pixel's brightness.
    """
    layers = (Conv("scores", 2, kernel=1),)
    model = ConvNet(
        layers,
        num_classes=2,
        in_channels=1,
        init="he",
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    graphdef, state = nnx.split(model)
    kernel = jnp.array([0.0, 1.0]).reshape(1, 1, 1, 2)
    state = jax.tree.map(lambda a: kernel if a.ndim == 4 else a * 0, state)
    image = np.full((32, 64, 1), 20, np.uint8)
    image[row : row + 4, column : column + 4] = 220
    return nnx.merge(graphdef, state), image


def test_hiding_what_the_class_looks_like_takes_the_evidence_away() -> None:
    model, image = bright_square(8, 40)
    heat = occlusion_map(model, image, 1, 32, Normalization((20.0,), (1.0,)))
    assert heat.scores.shape == (PLACES, 2 * PLACES) and heat.square == 8
    assert heat.extent == (-0.5, 63.5, 31.5, -0.5)
    # Hidden as a whole, all of its evidence is gone; hidden elsewhere, none is.
    evidence = 16 * 200 / image.size
    assert heat.scores.max() == pytest.approx(evidence, rel=1e-3)
    hides = np.argwhere(heat.scores > 0.99 * evidence)
    center = (hides.mean(axis=0) + 0.5) * 32 / PLACES  # in pixels
    assert np.abs(center - (10, 42)).max() < 1.5
    assert heat.scores[:, :12] == pytest.approx(0, abs=1e-4)
    # For the other class the same square is evidence against it.
    against = occlusion_map(model, image, 0, 32, Normalization((20.0,), (1.0,)))
    np.testing.assert_allclose(against.scores, -heat.scores, atol=1e-4)


def test_each_place_is_hidden_at_the_scale_of_training(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    """The map's numbers, one image at a time."""
    image = make_source([(48, 40)]).images[0]
    crop, (mean, std) = config.data.crop, (config.data.mean, config.data.std)
    heat = heat_map(model, image, 4, crop, Normalization(mean, std))
    assert map_side(model.layers, crop) is None
    assert heat.image.shape == (38, 32, 3) and heat.scores.shape == (14, 12)
    border = np.concatenate(
        [heat.image[[0, -1]].reshape(-1, 3), *heat.image[:, [0, -1]]]
    )
    answer = jax.jit(model.score_map)

    def log_odds(pixels: np.ndarray) -> float:
        normalized = np.float32((pixels[None] - np.array(mean)) / std)
        p = jax.nn.softmax(answer(normalized).mean(axis=(1, 2)))[0, 4]
        return float(jnp.log(p) - jnp.log1p(-p))

    for row, column in ((0, 0), (7, 5), (13, 11)):
        hidden = heat.image.copy()
        top, left = (
            round((place + 0.5) * side / places - 4)
            for place, side, places in ((row, 38, 14), (column, 32, 12))
        )
        hidden[max(0, top) : top + 8, max(0, left) : left + 8] = np.median(
            border, axis=0
        )
        np.testing.assert_allclose(
            heat.scores[row, column], log_odds(heat.image) - log_odds(hidden), atol=1e-4
        )


def test_a_long_image_hides_a_bounded_number_of_places() -> None:
    model, image = bright_square(8, 40)
    long = np.tile(image, (1, 16, 1))
    assert occlusion_map(
        model, long, 1, 32, Normalization((0.0,), (1.0,))
    ).scores.shape == (12, 36)
    # A square image and its hidden places nearly fill their batches.
    assert -(PLACES**2 + 1) % BATCH <= 2


def test_a_fine_map_is_that_of_scores_near_the_training_scale() -> None:
    model = nnx.merge(*network("nin_imagenet", num_classes=5, width=0.05))
    side = map_side(model.layers, 224)
    assert side is not None and 224 <= side <= 448
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    heat = heat_map(model, image, 3, 224, Normalization((120.0,) * 3, (60.0,) * 3))
    expected = score_map(
        model, rescale(image, side), 3, Normalization((120.0,) * 3, (60.0,) * 3)
    )
    np.testing.assert_array_equal(heat.scores, expected.scores)
    assert heat.square == 0 and heat.extent == expected.extent


def test_a_sentence_says_which_of_the_two_it_is() -> None:
    image = np.zeros((32, 48, 1), np.uint8)
    hidden = HeatMap(image, np.zeros((12, 18)), (-0.5, 47.5, 31.5, -0.5), 8)
    text = explain(hidden, 32)
    assert "hiding a square of 8 pixels" in text and "48 x 32 pixels" in text
    text = explain(HeatMap(image, np.zeros((7, 9)), (0, 48, 32, 0)), 16)
    assert (
        "score is highest, in 9 x 7 cells" in text
        and "2 times its training crop" in text
    )


def test_a_small_image_is_enlarged_with_its_map() -> None:
    scores = np.zeros((2, 4), np.float32)
    scores[1, 2] = 3
    image = np.zeros((16, 32, 1), np.uint8)
    image[12, 20] = 255  # the center of the map's cell (1, 2)
    shown = enlarge(HeatMap(image, scores, (-0.5, 31.5, 15.5, -0.5)))
    assert shown.image.shape == (SHOWN, 2 * SHOWN, 1)
    brightest = np.unravel_index(shown.image.argmax(), shown.image.shape)[:2]
    hottest = np.unravel_index(
        overlay(shown)[..., 0].argmax(), overlay(shown).shape[:2]
    )
    assert np.abs(np.subtract(brightest, hottest)).max() <= SHOWN / 16
    large = HeatMap(np.zeros((300, 300, 1), np.uint8), scores, (0, 300, 300, 0))
    assert enlarge(large) is large


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
    found = score_map(model, image, 4, preprocessing_of(config.data))
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
    assert side is not None
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels = jnp.asarray((image[None] - 120.0) / 60)
    logits = np.asarray(model(pixels))[0]
    for label in (0, 4):
        found = score_map(model, image, label, Normalization((120.0,) * 3, (60.0,) * 3))
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
    found = overlay(HeatMap(image, scores, (0, 80, 40, 0)))
    assert found.shape == (40, 80, 3) and found.dtype == np.uint8
    red = found[..., 0].astype(int)
    assert np.unravel_index(red.argmax(), red.shape) == (30, 50)
    assert red[30, 50] > red[30, 40] > red[30, 30] == red[0, 0]
    # A map of one height still has a picture.
    flat = overlay(HeatMap(image[..., :1], scores * 0, (0, 80, 40, 0)))
    assert flat.shape == (40, 80, 3) and flat.std(axis=(0, 1)).max() == 0


def test_a_long_image_goes_through_in_tiles(
    model: ConvNet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 1200, 3), np.uint8)
    whole = score_map(model, image, 4, preprocessing_of(config.data))
    monkeypatch.setattr(heat, "TILE", 256)
    tiles: list[tuple[int, ...]] = []

    def spy(network: Network, head: MapHead, image: np.ndarray) -> np.ndarray:
        tiles.append(image.shape)
        return tiled_map(network, head, image)

    monkeypatch.setattr(heat, "tiled_map", spy)
    tiled = score_map(model, image, 4, preprocessing_of(config.data))
    assert tiles == [image.shape]
    assert tiled.extent == whole.extent
    chex.assert_trees_all_close(tiled.scores, whole.scores, atol=1e-4)


def test_an_overlay_wider_than_opencv_maps() -> None:
    scores = np.array([[0, 0, 3, 0]], np.float32)
    image = np.zeros((4, 40_000, 1), np.uint8)
    found = overlay(HeatMap(image, scores, (0, 40_000, 4, 0)))
    assert found.shape == (4, 40_000, 3)
    assert abs(int(found[0, :, 0].argmax()) - 25_000) < 500

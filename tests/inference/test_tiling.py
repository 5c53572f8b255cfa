"""Tiled score maps against the untiled ones."""

import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import network
from vgg_jax import ConvNet, create_model, tiled_score_map
from vgg_jax.config import IMAGENET_MEAN
from vgg_jax.inference.forward import apply
from vgg_jax.inference.tiling import memory_estimate, spans
from vgg_jax.models.layers import output_size

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def untiled(model: ConvNet, image: np.ndarray) -> np.ndarray:
    graphdef, state = nnx.split(model)
    pixels = (image.astype(np.float64) - MEAN) / STD

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).score_map(x)

    return np.asarray(jax.jit(run)(state, jnp.asarray(pixels[None], jnp.float32)))[0]


def drawn(name: str, **options: object) -> ConvNet:
    return nnx.merge(*network(name, width=1 / 32, num_classes=5, **options))


# Odd sides, a side as long as a tile, one of a single pixel more, one shorter.
@pytest.mark.parametrize(
    ("name", "options", "tile", "sizes"),
    [
        ("vgg11_lrn", {"fc_kernel": 2}, 320, [(705, 321), (320, 961), (97, 650)]),
        ("vgg16_c", {"fc_kernel": 1, "ceil_mode": True}, 321, [(643, 331)]),
        ("vgg11_bn", {"head": "global_pool"}, 257, [(511, 300)]),
        ("nin_imagenet", {}, 387, [(771, 401)]),
        ("nin_cifar", {}, 60, [(131, 62), (59, 200)]),
    ],
)
def test_equal_to_the_untiled_map(
    name: str, options: dict, tile: int, sizes: list[tuple[int, int]]
) -> None:
    model = drawn(name, **options)
    apply.clear_cache()
    for size in sizes:
        image = picture(*size)
        want = untiled(model, image)
        got = tiled_score_map(model, image, tile=tile, mean=MEAN, std=STD)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert len(spans(model.layers, sizes[0][0], tile)) > 1
    assert apply._cache_size() == 1


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "nin_imagenet", "nin_tutorial"])
def test_tiles_give_every_cell_once(name: str) -> None:
    model = nnx.merge(*network(name, width=1 / 64))
    for side in [*range(224, 2000, 37), 10_000]:
        found = spans(model.layers, side, 512)
        cells = [i for span in found for i in range(span.cells.start, span.cells.stop)]
        assert cells == list(range(output_size(model.layers, side)))
        assert all(span.pixels.start < side for span in found)
        # No tile begins where the one before has all the rest.
        assert all(span.pixels.stop < side for span in found[:-1])


def test_a_tile_needs_room_for_what_a_cell_sees() -> None:
    model = drawn("nin_cifar")
    # Cell i sees the 27 pixels from 4 i - 10 on: the third is the first that sees
    # nothing before a tile, and it sees 2 to 28.
    assert len(spans(model.layers, 100, 29)) > 1
    with pytest.raises(ValueError, match=r"at least 29 pixels.* 27 pixels, got 28"):
        spans(model.layers, 100, 28)
    assert len(spans(model.layers, 28, 28)) == 1  # nothing is beyond it


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((100, 100, 3), np.float32), "uint8"),
        (np.zeros((100, 100, 1), np.uint8), "100, 100, 1"),
        (np.zeros((100, 1, 3), np.uint8), "at least 4x4"),
    ],
)
def test_what_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiled_score_map(drawn("nin_cifar"), image)


class Watched:
    """An image that is never whole in memory, as `numpy.memmap`; notes what is read."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, image: np.ndarray):
        self.image = image
        self.shape = image.shape
        self.largest = 0

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        found = self.image[window].copy()
        self.largest = max(self.largest, found.size)
        return found


def test_only_a_tile_at_a_time_is_read(capsys: pytest.CaptureFixture) -> None:
    model = drawn("nin_cifar")
    watched = Watched(picture(200, 300))
    found = tiled_score_map(model, watched, tile=64, progress="map")  # type: ignore[arg-type]
    assert watched.largest <= 64 * 64 * 3
    chex.assert_trees_all_equal(found, tiled_score_map(model, watched.image, tile=64))
    tiles = len(spans(model.layers, 200, 64)) * len(spans(model.layers, 300, 64))
    assert f"map  {tiles}/{tiles} tiles" in capsys.readouterr().err


def test_the_estimate_compiles_what_the_run_uses_and_grows_with_the_map_alone() -> None:
    model = drawn("nin_cifar")
    apply.clear_cache()
    small = memory_estimate(model, (100, 100), tile=64)
    large = memory_estimate(model, (1000, 2000), tile=64)
    assert small.device == large.device
    cells = output_size(model.layers, 1000) * output_size(model.layers, 2000)
    cells -= output_size(model.layers, 100) ** 2
    assert large.host - small.host == cells * 5 * 4
    assert large.tiles == len(spans(model.layers, 1000, 64)) * len(
        spans(model.layers, 2000, 64)
    )
    # A 64x64 map of conv1 is the least that is there at once.
    assert small.device > 64 * 64 * 6 * 4
    assert "MiB on the device" in str(large)


PEAK = """
import resource, sys
import numpy as np
import jax
from flax import nnx
import vgg_jax
from vgg_jax.inference.tiling import memory_estimate

model = vgg_jax.create_model("vgg11", num_classes=10, width=0.25, rngs=nnx.Rngs(0))
image = np.memmap(sys.argv[1], np.uint8, "r", shape=(10_000, 8_000, 3))
declared = memory_estimate(model, image.shape[:2], tile=1024)

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

before = resident("VmRSS")
scores = vgg_jax.tiled_score_map(model, image, tile=1024)
np.save(sys.argv[2], scores)
print(resident("VmHWM") - before, declared.device + declared.host)
"""


@pytest.mark.slow
def test_a_large_picture_in_the_memory_that_was_declared(tmp_path: Path) -> None:
    """An untiled image's first map alone would take 5.1 GB of the process's memory."""
    shape = (10_000, 8_000, 3)
    file, found = tmp_path / "image", tmp_path / "scores.npy"
    image = np.memmap(file, np.uint8, "w+", shape=shape)
    rng = np.random.default_rng(0)
    for rows in range(0, shape[0], 1000):
        image[rows : rows + 1000] = rng.integers(0, 256, (1000, *shape[1:]), np.uint8)
    image.flush()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(file), str(found)],
        capture_output=True,
        text=True,
        check=True,
    )
    used, declared = map(int, done.stdout.split())
    pages = image.nbytes  # of the file that was read count as memory
    assert used < declared + pages
    assert used > 0.3 * declared
    assert declared < 10_000 * 8_000 * 16 * 4 / 8

    # In windows across seams, cells that see no border of theirs are the untiled map's.
    scores = np.load(found)
    model = create_model("vgg11", num_classes=10, width=0.25, rngs=nnx.Rngs(0))
    assert scores.shape == (output_size(model.layers, 10_000), 244, 10)
    side, inside = 1600, slice(7, 37)
    for row, column in ((0, 0), (17, 23), (130, 101), (262, 200)):
        pixels = image[32 * row :, 32 * column :][:side, :side]
        graphdef, state = nnx.split(model)
        x = jnp.asarray(pixels[None] - np.float32(IMAGENET_MEAN))
        want = nnx.merge(graphdef, state).score_map(x)[0, inside, inside]
        got = scores[row:, column:][inside, inside]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())

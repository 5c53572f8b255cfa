"""Shapes that images are padded to, and what they cost."""

import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from flax import nnx

from vgg_jax import create_model
from vgg_jax.config import BUCKET_RATIOS
from vgg_jax.data import transforms
from vgg_jax.inference.dense import padded_shapes, smallest_fitting
from vgg_jax.models import ConvNet
from vgg_jax.models.measure import summary
from vgg_jax.tools.bucket_cost import (
    ILSVRC,
    LONGEST,
    best_ratios,
    main,
    measure_cost,
    read_sizes,
)

SCALES = (256, 384, 512)


@pytest.fixture(scope="module")
def vgg16() -> ConvNet:
    return nnx.eval_shape(lambda: create_model("vgg16", rngs=nnx.Rngs(0)))


def test_shapes_of_a_scale() -> None:
    found = padded_shapes((0.66, 1.0, 1.5, 2.0), 256)
    assert found == ((256, 256), (256, 384), (388, 256), (256, 512))
    assert smallest_fitting(found, 256, 256) == (256, 256)
    assert smallest_fitting(found, 256, 257) == (256, 384)
    assert smallest_fitting(found, 300, 256) == (388, 256)
    assert smallest_fitting(found, 256, 513) is None


@pytest.mark.parametrize("scale", [28, 224, 256, 384, 511])
def test_a_bucket_holds_every_image_up_to_its_ratio(scale: int) -> None:
    for height, width in itertools.product(range(200, 501, 7), repeat=2):
        size = transforms.rescaled_shape((height, width), scale)
        bucket = smallest_fitting(
            padded_shapes((0.4, width / height, 2.5), scale), *size
        )
        assert bucket in padded_shapes((width / height,), scale)


def test_the_promise_for_imagenet(vgg16: ConvNet) -> None:
    sizes = read_sizes(ILSVRC)
    costs = [measure_cost(vgg16, sizes, BUCKET_RATIOS, scale) for scale in SCALES]
    assert all(cost.images == sizes.total() == 10_000 for cost in costs)
    assert sum(cost.shapes for cost in costs) > 400
    assert any(cost.tiled for cost in costs)
    assert sum(cost.programs for cost in costs) + 1 <= 24
    assert all(cost.extra <= 0.2 for cost in costs)


def test_the_default_is_nearly_the_best(vgg16: ConvNet) -> None:
    # The square is there for data sets of squares; the rest is rounded outwards.
    rest = read_sizes(ILSVRC)
    for size in [size for size in rest if size[0] == size[1]]:
        del rest[size]
    best = sorted((1.0, *best_ratios(vgg16, rest, 6, SCALES)))
    for ours, theirs in zip(BUCKET_RATIOS, best, strict=True):
        assert 0 <= abs(np.log(ours)) - abs(np.log(theirs)) < 0.013


def test_costs_of_a_few_images(vgg16: ConvNet) -> None:
    sizes = Counter({(300, 400): 3, (300, 390): 2, (400, 300): 1, (300, 1500): 1})
    cost = measure_cost(vgg16, sizes, (4 / 3, 2.0), 256)
    one = {
        shape: summary(vgg16, shape).multiply_adds
        for shape in [(256, 341), (256, 333), (341, 256), (256, 1280), (256, 342)]
    }
    assert cost.needed == (
        3 * one[256, 341] + 2 * one[256, 333] + one[341, 256] + one[256, 1280]
    )
    # 5:1 and the upright one fit into no bucket; each takes tiles of 1024x1024.
    tile = summary(vgg16, 1024).multiply_adds
    assert cost.computed == 5 * one[256, 342] + 3 * tile
    assert (cost.programs, cost.shapes, cost.images, cost.tiled) == (1, 4, 7, 2)
    assert cost.extra == cost.computed / cost.needed - 1


def test_the_best_ratios_are_the_best_of_all(vgg16: ConvNet) -> None:
    rng = np.random.default_rng(0)
    sizes = Counter(
        {
            (int(100 * h), int(100 * w)): int(count)
            for h, w, count in rng.integers(1, 5, (12, 3))
        }
    )
    written = sorted(
        {
            (np.ceil if w >= h else np.floor)(1000 * w / h).item() / 1000
            for h, w in sizes
            if max(h, w) <= LONGEST * min(h, w)
        }
    )
    for count in (2, 3, 4):
        found = best_ratios(vgg16, sizes, count, (256, 300))

        def cost(ratios: tuple[float, ...]) -> int:
            scales = [measure_cost(vgg16, sizes, ratios, scale) for scale in (256, 300)]
            if any(c.tiled for c in scales):
                return 10**30
            return sum(c.computed for c in scales)

        least = min(map(cost, itertools.combinations(written, count)))
        assert cost(found) == least


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i, size in enumerate([(30, 40), (30, 40), (60, 30)]):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((*size, 3), np.uint8))
    (tmp_path / "3.png").write_bytes(b"torn")
    listed = tmp_path / "sizes.csv"
    listed.write_text("# mine\nwidth,height,count\n40,30,2\n30,60\n")
    arguments = ["--scales", "224,256", "--ratios", "0.5,1.34"]
    assert main([*arguments, "--from", str(tmp_path)]) == 0
    from_folder = capsys.readouterr()
    assert "3.png" in from_folder.err
    assert main([*arguments, "--sizes", str(listed)]) == 0
    assert capsys.readouterr().out == from_folder.out
    assert "3 images of 2 sizes" in from_folder.out
    assert "4 programs in all; one for each shape would be 4" in from_folder.out
    assert '--config.evaluation.bucket_ratios="(0.5, 1.334)"' in from_folder.out


@pytest.mark.parametrize(
    ("text", "message"),
    [("40;30", "line 1, found '40;30'"), ("", "no sizes"), ("0,3", "above 0")],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    file = tmp_path / "sizes"
    file.write_text(text)
    assert main(["--sizes", str(file)]) == 1
    assert message in capsys.readouterr().err
    assert main(["--from", str(tmp_path)]) == 1
    assert "no pictures" in capsys.readouterr().err


@pytest.mark.parametrize("ratios", ["0", "1,-1", "nan", "", "wide"])
def test_ratios_that_no_bucket_has(
    ratios: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--ratios={ratios}"]) == 2
    assert "argument --ratios: expected " in capsys.readouterr().err

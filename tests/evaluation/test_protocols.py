"""Protocols over a whole source, against one image after another in NumPy."""

import dataclasses
import io
import math
import sys
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.compilation import onednn_options
from vgg_jax.config import Config, DataConfig, VGGConfig
from vgg_jax.data.transforms import center, grid_5x5, rescale
from vgg_jax.distributed import make_mesh
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.protocols import default_scales, evaluate, validate_protocol
from vgg_jax.inference import passes
from vgg_jax.inference.forward import Network, Pooled, Posteriors, apply
from vgg_jax.inference.passes import View
from vgg_jax.models import ConvNet, create_model
from vgg_jax.preprocessing import IMAGENET

# Portrait, landscape, square; 11 pictures are not a multiple of any batch here.
SHAPES = [(40, 56), (56, 40), (48, 48)] * 3 + [(40, 56)] * 2


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def one_image(
    model: ConvNet, image: np.ndarray, config: Config, protocol: str, scale: int
) -> np.ndarray:
    if protocol == "combined":
        parts = ("dense", "multicrop")
        return np.mean([one_image(model, image, config, p, scale) for p in parts], 0)
    image = rescale(image, scale)
    pixels = (image.astype(np.float64) - config.data.mean) / config.data.std
    size = config.data.crop
    h, w = pixels.shape[0] - size, pixels.shape[1] - size
    corners = {
        "dense": [],
        "center": [(math.floor(h / 2), math.floor(w / 2))],
        "tencrop": [(0, 0), (0, w), (h, 0), (h, w), (h // 2, w // 2)],
        "multicrop": [
            (math.floor(down * h), math.floor(right * w))
            for down in (0, 0.25, 0.5, 0.75, 1)
            for right in (0, 0.25, 0.5, 0.75, 1)
        ],
    }[protocol]
    views = [pixels[y : y + size, x : x + size] for y, x in corners] or [pixels]
    if protocol != "center":
        views += [view[:, ::-1] for view in views]
    expected = {"center": 1, "tencrop": 10, "dense": 2, "multicrop": 50}
    assert len(views) == expected[protocol]
    found = []
    for view in views:
        scores = np.asarray(model.score_map(jnp.asarray(view[None], jnp.float32)))
        cells = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
        if config.evaluation.averaging == "score_map":
            found.append(softmax(cells.mean(axis=0)))
        else:
            found.append(softmax(cells).mean(axis=0))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("protocol", "averaging", "scales"),
    [
        ("center", "score_map", (48,)),
        ("dense", "score_map", (64,)),
        ("dense", "posteriors", (40, 64)),
        ("tencrop", "score_map", (48,)),
        ("multicrop", "score_map", (48, 55)),
        ("combined", "score_map", (40, 55)),
    ],
)
def test_every_image_once_in_its_row(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    protocol: str,
    averaging: str,
    scales: tuple[int, ...],
) -> None:
    config.evaluation.averaging = averaging
    source = make_source(SHAPES)
    config.evaluation.batch_size = 30  # two pictures of 25 crops, on one device
    mesh = make_mesh(jax.devices()[:1])
    found = evaluate(model, source, config, protocol=protocol, scales=scales, mesh=mesh)
    expected = [
        np.mean([one_image(model, i, config, protocol, q) for q in scales], axis=0)
        for i in source.images
    ]
    assert found.posteriors.dtype == np.float32
    chex.assert_trees_all_close(
        found.posteriors.astype(np.float64), np.stack(expected), atol=2e-5
    )
    np.testing.assert_array_equal(found.labels, source.labels)
    np.testing.assert_array_equal(found.weights, np.ones(len(SHAPES)))
    # The pictures are told apart, so that a row in another's place is seen.
    distances = np.abs(found.posteriors[:, None] - found.posteriors).max(axis=-1)
    assert distances[~np.eye(len(SHAPES), dtype=bool)].min() > 2e-4


def test_eight_devices_give_what_one_gives(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    assert len(jax.devices()) == 8
    # A restored network's arrays are bound to one device.
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.device_put(state, jax.devices()[0]))
    config.evaluation.batch_size = 5  # becomes 8, then stays 5
    source = make_source(SHAPES)
    many, one = (
        evaluate(model, source, config, protocol="dense", scales=(48,), mesh=mesh)
        for mesh in (make_mesh(), make_mesh(jax.devices()[:1]))
    )
    chex.assert_trees_all_close(
        dataclasses.asdict(many), dataclasses.asdict(one), atol=1e-5
    )


def test_dense_at_the_crop_of_a_symmetric_square_is_the_center(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    source = make_source([(32, 32)] * 5)
    source.images = [
        np.concatenate([i[:, :16], i[:, 15::-1]], 1) for i in source.images
    ]
    center, dense = (
        evaluate(model, source, config, protocol=p, scales=(32,))
        for p in ("center", "dense")
    )
    chex.assert_trees_all_close(center.posteriors, dense.posteriors, atol=1e-5)


def test_one_compilation_a_shape(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []
    score_map = ConvNet.score_map
    apply.clear_cache()

    def spy(self: ConvNet, images: jax.Array, **options: jax.Array) -> jax.Array:
        shapes.append(images.shape)
        return score_map(self, images, **options)

    monkeypatch.setattr(ConvNet, "score_map", spy)
    source = make_source([(40, 56), (56, 40)] * 9 + [(40, 56)])
    config.evaluation.batch_size = 12  # rounded up to a multiple of 8 devices
    evaluate(model, source, config, protocol="center", scales=(32,))
    assert shapes == [(16, 32, 32, 3)]
    shapes.clear()
    config.evaluation.batch_size = 24  # three for each device: pairs need four
    evaluate(model, source, config, protocol="center", scales=(32,))
    assert shapes == [(32, 32, 32, 3)]
    shapes.clear()
    config.evaluation.batch_size = 8
    evaluate(model, source, config, protocol="dense", scales=(40,))
    assert sorted(shapes) == [(8, 40, 61, 3)] * 2 + [(8, 61, 40, 3)] * 2
    # Crops of all scales share one program; each device is given an example's.
    shapes.clear()
    evaluate(model, source, config, protocol="multicrop", scales=(40, 48))
    assert shapes == [(8 * 25, 32, 32, 3)] * 2


def test_larger_images_are_fewer_at_once(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.evaluation.batch_size = 8  # crops, of 32x32 pixels
    config.evaluation.bucket_ratios = (1.0, 1.5, 3.0)
    source = make_source([(40, 40)] * 7 + [(40, 60)] * 3 + [(40, 120)] * 2)
    given: list[tuple[int, ...]] = []
    run = Network.run

    def spy(self: Network, head: Any, images: jax.Array, *rest: Any) -> Any:
        given.append(images.shape[:3])
        return run(self, head, images, *rest)

    monkeypatch.setattr(Network, "run", spy)
    mesh = make_mesh(jax.devices()[:1])
    apply.clear_cache()
    evaluate(model, source, config, protocol="dense", scales=(40, 64), mesh=mesh)
    # Of 8,192 pixels, an even number or one; the last squares go out with a wide image.
    squares, wide, widest = (4, 40, 40), (2, 40, 60), (1, 40, 120)
    assert given[:6] == [squares, wide, widest, widest, wide, squares]
    assert set(given[6:]) == {(2, 64, 64), (1, 64, 96), (1, 64, 192)}
    assert apply._cache_size() == len(set(given)) == 6  # programs


def test_a_long_pass_is_computed_by_onednn_on_cpu(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_source(SHAPES)
    mesh = make_mesh(jax.devices()[:1])
    given: set[tuple[Any, ...]] = set()
    run = Network.run

    def spy(self: Network, *args: Any) -> Any:
        given.add(self.options)
        return run(self, *args)

    monkeypatch.setattr(Network, "run", spy)
    found = []
    for options, longest, onednn in (
        ((), 2**43, None),
        (tuple(onednn_options().items()), 1, None),
        ((), 1, False),
    ):
        monkeypatch.setattr(passes, "LONG_PASS", longest)
        config.onednn = onednn
        found.append(
            evaluate(model, source, config, protocol="dense", scales=(48,), mesh=mesh)
        )
        assert given == {options}
        given.clear()
    np.testing.assert_allclose(found[1].posteriors, found[0].posteriors, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "view", "head", "is_long"),
    [
        (50_000, View(256), Posteriors(), True),
        (500, View(256), Posteriors(), False),  # a program for each of several shapes
        (600, View(256, center), Posteriors(), True),
        (100, View(256, center), Posteriors(), False),
        (100, View(256, grid_5x5), Posteriors(), True),  # 25 crops of each
        (600, View(256, center), Pooled(layer="relu1_1"), False),
        (50_000, View(100), Pooled(layer="relu1_1"), False),
        (50_000, View(100), Posteriors(), False),  # too small: the pass will say so
    ],
)
def test_a_pass_is_long_by_its_multiply_adds(
    images: int, view: View, head: Any, is_long: bool
) -> None:
    # VGG-16: 15.5 billion for a crop of 224 x 224, a third more for 256 x 256.
    model = nnx.eval_shape(lambda: create_model("vgg16", rngs=nnx.Rngs(0)))
    network = Network.from_model(model, IMAGENET)
    config = Config(
        model=VGGConfig(name="vgg16"), data=DataConfig(dataset="folder", crop=224)
    )
    source: Any = range(images)
    mesh = make_mesh(jax.devices()[:1])
    assert passes._takes_long(network, head, source, config, view, mesh) == is_long


def test_a_part_of_the_network_takes_images_too_small_for_the_whole(
    config: Config, make_source: Callable
) -> None:
    whole = create_model("vgg11", num_classes=3, width=0.125, fc_kernel=1, rngs=0)
    network = Network.from_model(whole, IMAGENET)
    found = passes.over_source(
        network,
        Pooled(layer="relu2_1"),
        make_source([(24, 30)] * 4),
        config,
        View(16),
        mesh=make_mesh(jax.devices()[:1]),
    )
    assert found["output"].shape == (4, 16)


def test_an_image_is_read_once_for_its_crops(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_source(SHAPES)
    read = []
    get = type(source).__getitem__
    monkeypatch.setattr(
        type(source), "__getitem__", lambda self, i: read.append(i) or get(self, i)
    )
    evaluate(model, source, config, protocol="multicrop", scales=(48,))
    assert sorted(read) == list(range(len(SHAPES)))


def test_a_corrupt_image_is_left_out_and_known(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    config.data.on_corrupt_image = "skip"
    whole = make_source(SHAPES)
    broken = make_source(SHAPES, corrupt=(2, 9))
    for protocol in ("center", "dense", "tencrop"):
        found, expected = (
            evaluate(model, source, config, protocol=protocol, scales=(48,))
            for source in (broken, whole)
        )
        np.testing.assert_array_equal(found.skipped, [2, 9])
        np.testing.assert_array_equal(found.labels, whole.labels)
        assert not found.posteriors[[2, 9]].any()
        kept = found.weights > 0
        chex.assert_trees_all_close(
            found.posteriors[kept], expected.posteriors[kept], atol=1e-5
        )


@pytest.mark.parametrize("times", [0, 2])
def test_an_example_lost_or_doubled_by_the_pipeline_is_an_error(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    real = passes.eval_batches

    def wrong(*args, **kwargs):
        first, *rest = real(*args, **kwargs)
        return iter([first] * times + rest)

    monkeypatch.setattr(passes, "eval_batches", wrong)
    with pytest.raises(RuntimeError, match=f"every example once.* {times} times"):
        evaluate(model, make_source(SHAPES), config, protocol="center", scales=(32,))


class Untouchable:
    class_names = tuple("abcdefg")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        raise AssertionError("work was done before the check")


@pytest.mark.parametrize(
    ("protocol", "scales", "message"),
    [
        ("dence", (32,), "'dense'"),
        ("dense", (64, 31), "scale 31 .* vgg11: the smallest that fits is 32"),
        (
            "center",
            (31,),
            "scale 31 .* 32x32 crops: the smallest that fits is 32",
        ),
        ("combined", (31,), "scale 31 .* the smallest that fits is 32"),
        ("dense", (), "at least one scale"),
        ("multicrop", (32, 48, 32), "different scales, got 32, 48, 32"),
    ],
)
def test_what_is_refused_before_any_work(
    model: ConvNet, config: Config, protocol: str, scales: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, Untouchable(), config, protocol=protocol, scales=scales)


def test_settings_that_do_not_fit(model: ConvNet, config: Config) -> None:
    few = Untouchable()
    few.class_names = ("a", "b")
    with pytest.raises(ValueError, match=r"network of 2 classes.* got 7"):
        evaluate(model, few, config, protocol="center", scales=(32,))
    config.data.crop = 24
    with pytest.raises(ValueError, match=r"data\.crop=24 .* smallest that fits is 32"):
        validate_protocol(model, config, "center", (32,))
    config.evaluation.averaging = "scoremap"
    with pytest.raises(ValueError, match="'score_map'"):
        validate_protocol(model, config, "dense", (32,))


def test_default_scales(config: Config) -> None:
    assert default_scales("center", config) == (48,)
    assert default_scales("tencrop", config) == (48,)
    for several in ("dense", "multicrop", "combined"):
        assert default_scales(several, config) == (32, 48, 64)
    with pytest.raises(ValueError, match="'center'"):
        default_scales("centre", config)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_goes_to_stderr(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
) -> None:
    def run(progress: str | None) -> str:
        monkeypatch.setattr(sys, "stderr", stream())
        source = make_source([(32, 32)] * 20)
        found: Predictions = evaluate(
            model,
            source,
            config,
            protocol="center",
            scales=(32, 40),
            progress=progress,
        )
        assert len(found.labels) == 20
        return sys.stderr.getvalue()  # type: ignore[attr-defined]

    assert run(None) == ""
    text = run("run7 center")
    assert "run7 center  40/40 images" in text and text.endswith("\n")
    assert ("\r" in text) == (stream is Terminal)

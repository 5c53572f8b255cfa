"""One pass over a set: rows in the order of the source, whatever the head."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import drawn
from vgg_jax.config import Config, VGGConfig
from vgg_jax.console import progress_bar
from vgg_jax.data.transforms import CropLayout, center, corners_and_center, rescale
from vgg_jax.distributed import make_mesh
from vgg_jax.evaluation.protocols import evaluate
from vgg_jax.inference import passes
from vgg_jax.inference.forward import Network, Pooled, Posteriors, ScoreMap
from vgg_jax.inference.passes import View, over_source, place_rows
from vgg_jax.inference.tiling import run_tiled
from vgg_jax.memory import OutOfMemory
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization
from vgg_jax.tools.programs import lower_dense


def network_of(model: ConvNet, config: Config) -> Network:
    normalization = Normalization(config.data.mean, config.data.std)
    return Network.from_model(model, normalization)


@pytest.mark.parametrize("head", [Pooled(layer="relu2"), Posteriors()])
def test_a_long_image_gets_what_a_short_one_would(
    model: ConvNet, config: Config, head: Pooled | Posteriors
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 17, 3), np.uint8)
    image = image.repeat(5, axis=0).repeat(5, axis=1)
    network = network_of(model, config)
    tiled = run_tiled(network, head, image, {})
    whole = network.run(head, image[None], np.int32([image.shape[:2]]))
    assert tiled.shape == whole.shape
    chex.assert_trees_all_close(tiled, whole, atol=1e-5)


def test_rows_long_and_corrupt_images_and_a_bar(
    model: ConvNet, config: Config, make_source: Callable
) -> None:
    # Of 40x300 pixels no bucket is long enough.
    source = make_source([(40, 56), (40, 300), (56, 40), (48, 48)], corrupt=(2,))
    config.data.on_corrupt_image = "skip"
    head = Pooled(layer="relu2")
    mesh = make_mesh(jax.devices()[:2])
    with progress_bar("pass", len(source)) as bar:
        rows = over_source(
            network_of(model, config),
            head,
            source,
            config,
            View(40),
            mesh=mesh,
            bar=bar,
        )
        assert bar.n == len(source)
    np.testing.assert_array_equal(rows["label"], source.labels)
    np.testing.assert_array_equal(rows["weight"], [1, 1, 0, 1])
    network = network_of(model, config)
    for i in (0, 1, 3):
        image = rescale(source.images[i], 40)
        alone = network.run(head, image[None], np.int32([image.shape[:2]]))[0]
        chex.assert_trees_all_close(rows["output"][i], alone, atol=1e-5)


def test_the_rows_of_hosts_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [
        {"index": np.array([0, 2, 4]), "output": np.array([[0.0], [2.0], [4.0]])},
        {"index": np.array([3, 1]), "output": np.array([[3.0], [1.0]])},
    ]
    sent: list[tuple[int, ...]] = []

    def gather(rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        sent.append(rows.shape)
        if rows.ndim == 0:
            return np.array([3, 2])
        name = "index" if rows.dtype.kind == "i" else "output"
        padded = [np.resize(host[name], (3, *rows.shape[1:])) for host in hosts]
        return np.stack(padded)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(passes, "process_allgather", gather)
    placed = place_rows([hosts[0]], 5)
    np.testing.assert_array_equal(placed["output"][:, 0], np.arange(5))
    # Each host sends its own rows, not as many as the set has.
    assert max(shape[0] for shape in sent if shape) == 3


@pytest.mark.parametrize(
    ("images", "layout", "expected"),
    [
        (300, center, 128),  # 64 for each of two devices
        (21, center, 24),  # 12 for each: an even number
        (2, center, 2),
        (1, center, 2),
        (3, corners_and_center, 4),  # five crops each
        (300, corners_and_center, 28),
    ],
)
def test_a_small_set_is_not_filled_up_to_a_whole_batch(
    images: int,
    layout: CropLayout,
    expected: int,
    config: Config,
    make_source: Callable,
) -> None:
    source = make_source([(8, 8)] * images)
    config.data.crop, config.evaluation.batch_size = 8, None
    mesh = make_mesh(jax.devices()[:2])
    batches = passes.view_batches(source, config, View(8, layout), 3, mesh, False)
    sizes = [len(batch["index"]) for batch in batches]
    assert set(sizes) == {expected} and len(sizes) == -(-images // expected)


class NeverComputed:
    """What a device gives that ran out of memory while the host went on."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("view", "settings"),
    [
        (View(40), r"evaluation\.batch_size=4, or smaller \(RESOURCE_EXHAUSTED"),
        (View(64, center), r"evaluation\.batch_size=4, or smaller"),
        (View(128), r"evaluation\.scales of smaller images"),  # one image as it is
    ],
)
def test_a_batch_that_does_not_fit_names_the_setting(
    model: ConvNet,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
    view: View,
    settings: str,
    at_once: bool,
) -> None:
    def run(*_: object) -> object:
        return jnp.zeros(2**45) if at_once else NeverComputed()  # 128 TiB

    monkeypatch.setattr(Network, "run", run)
    mesh = make_mesh(jax.devices()[:1])
    network, source = network_of(model, config), make_source([(40, 44)] * 8)
    with pytest.raises(
        OutOfMemory, match=rf"at Q={view.scale} does not fit.*{settings}"
    ):
        over_source(network, Posteriors(), source, config, view, mesh=mesh)


def test_a_row_that_is_missing_is_an_error() -> None:
    part = {"index": np.array([0, 1, 1]), "output": np.zeros(3)}
    with pytest.raises(RuntimeError, match="example 1 2 times"):
        place_rows([part], 3)


def test_the_tpu_check_asks_about_the_program_that_evaluation_runs(
    config: Config, make_source: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.model = VGGConfig(name="vgg11", width=0.03, fc_kernel=1, num_classes=7)
    model = nnx.merge(*drawn.network(**vars(config.model)))
    ran: list[tuple] = []
    run = Network.run

    def spy(self: Network, *arguments: object) -> object:
        ran.append((self, *arguments))
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "run", spy)
    config.evaluation.batch_size = 2
    mesh = make_mesh(jax.devices()[:2])
    source = make_source([(40, 56)] * 2)
    evaluate(model, source, config, protocol="dense", scales=(40,), mesh=mesh)
    [(network, head, images, sizes, extras)] = ran
    really = network.lower(head, images, sizes, extras).as_text()
    asked = lower_dense(config, mesh, images.shape[1:3], len(images)).as_text()
    assert asked == really
    # The text tells programs apart.
    assert network.lower(ScoreMap(), images, sizes, extras).as_text() != really


def test_a_network_in_training_mode_is_run_as_one_that_is_not(
    config: Config, make_source: Callable
) -> None:
    options = {"width": 0.03, "fc_kernel": 1, "num_classes": 7}
    model = nnx.merge(*drawn.network("vgg11_bn", **options))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = network_of(model, config).run(Posteriors(), images)
    model.train()
    got = network_of(model, config).run(Posteriors(), images)
    chex.assert_trees_all_close(got, expected, atol=1e-6)

"""Training sets on the devices, whose crops are the host's to the bit."""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vgg_jax.config import DataConfig
from vgg_jax.data import on_device
from vgg_jax.data.base import CorruptImage
from vgg_jax.data.on_device import Coming, NotForDevices, put_on_devices
from vgg_jax.data.pipeline import Batch, train_batches
from vgg_jax.distributed import batch_sharding, make_mesh, shard_batch

CONFIG = DataConfig(
    dataset="folder",
    crop=16,
    scale_min=16,
    scale_max=16,
    on_device=True,
    num_threads=1,
)
RESIZED = dataclasses.replace(CONFIG, scale_min=17, scale_max=24, pad=3)


class Noise:
    """PNG pictures of noise, of the shapes that are given."""

    class_names = ("even", "odd")

    def __init__(self, *shapes: tuple[int, int], torn: int | None = None):
        self._shapes = shapes
        self._torn = torn

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self._shapes[index], 3), np.uint8)
        png = cv2.imencode(".png", image)[1].tobytes()
        if index == self._torn:
            png = png[:-30]
        return {"image": png, "label": index % 2, "name": f"picture {index}"}


def pairs(
    source: Noise, config: DataConfig, count: int, channels: int = 3, **place: int
) -> Iterator[tuple[dict[str, jax.Array], Batch]]:
    """The batches that are cut on the eight devices, and those of the host."""
    device_set = put_on_devices(source, config, make_mesh(), channels=channels)
    assert device_set is not None
    draws = device_set.train_draws(**place)
    host = train_batches(source, config, channels=channels, **place)
    with contextlib.closing(draws), contextlib.closing(host):
        for rows, batch in itertools.islice(zip(draws, host, strict=True), count):
            yield device_set.cut(shard_batch(device_set.mesh, rows)), batch


@pytest.mark.parametrize("config", [CONFIG, RESIZED])
@pytest.mark.parametrize("shape", [(16, 16), (13, 15), (16, 11)])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_hosts_to_the_bit(
    config: DataConfig, shape: tuple[int, int], channels: int
) -> None:
    source = Noise(*[shape] * 21)
    if channels == 1:
        config = dataclasses.replace(config, mean=(0.0,), std=(1.0,))
    else:
        config = dataclasses.replace(config, color_shift=0.1)
    sharding = batch_sharding(make_mesh())
    place = {"channels": channels, "batch_size": 16, "seed": 5, "start_step": 2}
    for batch, expected in pairs(source, config, 6, **place):
        assert batch.keys() == expected.keys()
        for name, rows in batch.items():
            assert rows.dtype == expected[name].dtype
            assert rows.sharding.is_equivalent_to(sharding, rows.ndim)
            np.testing.assert_array_equal(rows, expected[name])
    assert len(np.unique(batch["image"])) > 100


def test_rows_of_all_processes_are_the_global_batch() -> None:
    source = Noise(*[(16, 16)] * 21)
    device_set = put_on_devices(source, RESIZED, make_mesh(), channels=3)
    place = {"batch_size": 16, "seed": 5, "start_step": 2}
    whole = device_set.train_draws(**place)
    parts = [
        device_set.train_draws(**place, process_index=i, process_count=2)
        for i in range(2)
    ]
    for rows in itertools.islice(whole, 4):
        halves = [next(part) for part in parts]
        for name, values in rows.items():
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(joined, values)


def test_a_set_comes_while_the_host_goes_on() -> None:
    source = Noise(*[(16, 16)] * 9)
    config = dataclasses.replace(RESIZED, on_device=True)
    may_begin = threading.Event()

    def put(cancelled: threading.Event) -> Any:
        may_begin.wait(60)
        return put_on_devices(
            source, config, make_mesh(), channels=3, cancelled=cancelled
        )

    with Coming(put) as coming:
        assert not coming.is_there()
        may_begin.set()
        device_set = coming.result()
        assert coming.is_there() and device_set is not None
    whole = put_on_devices(source, config, make_mesh(), channels=3)
    assert whole is not None
    np.testing.assert_array_equal(device_set.images, whole.images)


def test_a_set_that_is_not_wanted_any_longer_is_given_up() -> None:
    decoded = []

    class Counting(Noise):
        def __getitem__(self, index: int) -> Any:
            decoded.append(index)
            return super().__getitem__(index)

    source = Counting(*[(16, 16)] * 9)
    config = dataclasses.replace(RESIZED, on_device=True)
    left = threading.Event()

    def put(cancelled: threading.Event) -> Any:
        assert left.wait(60) and cancelled.wait(60)
        return put_on_devices(
            source, config, make_mesh(), channels=3, cancelled=cancelled
        )

    with Coming(put) as coming:
        left.set()
    with pytest.raises(CancelledError):
        coming.result()
    assert decoded == [0]  # whose shape says whether the set can go there


def test_a_damaged_image_weighs_nothing_or_is_an_error() -> None:
    source = Noise(*[(16, 16)] * 9, torn=0)
    with pytest.raises(CorruptImage, match=r"picture 0.*on_corrupt_image"):
        put_on_devices(source, RESIZED, make_mesh(), channels=3)
    config = dataclasses.replace(RESIZED, on_corrupt_image="skip")
    left_out = 0
    place = {"batch_size": 8, "seed": 5, "start_step": 0}
    for batch, expected in pairs(source, config, 9, **place):  # 8 epochs
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
        left_out += (batch["weight"] == 0).sum()
    assert left_out == 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Noise(*[(16, 16)] * 300, (17, 16)), r"one shape: found \(16, 16\) and \(17"),
        (Noise(*[(18, 20)] * 9), "at most scale_min=17, got 18"),
        (Noise((16, 16), torn=0), "none that can be decoded"),
    ],
)
def test_other_sets_are_refused_or_stay_on_the_host(
    source: Noise, message: str
) -> None:
    with pytest.raises(NotForDevices, match=message):
        put_on_devices(source, RESIZED, make_mesh(), channels=3)
    unasked = dataclasses.replace(RESIZED, on_device=None)
    assert put_on_devices(source, unasked, accelerators(), channels=3) is None


def test_a_set_of_large_images_is_refused_or_stays_on_the_host() -> None:
    """The host interpolates only their crops, which is not what `cut` gives."""
    config = dataclasses.replace(CONFIG, scale_max=317)
    message = "grow to fewer than 100,000 pixels at scale_max, got 317x317"
    with pytest.raises(NotForDevices, match=message):
        put_on_devices(Noise((16, 16)), config, make_mesh(), channels=3)
    unasked = dataclasses.replace(config, on_device=None)
    assert put_on_devices(Noise((16, 16)), unasked, accelerators(), channels=3) is None
    as_they_are = dataclasses.replace(CONFIG, scale_min=317, scale_max=317)
    assert put_on_devices(Noise((317, 317)), as_they_are, make_mesh(), channels=3)


def test_a_set_that_no_memory_holds_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = np.zeros

    def refuse(shape: Any, dtype: Any) -> np.ndarray:
        if np.prod(shape) > 1e8:
            raise MemoryError
        return zeros(shape, dtype)

    monkeypatch.setattr(on_device.np, "zeros", refuse)
    source = Noise(*[(16, 16)] * 9)
    config = dataclasses.replace(CONFIG, scale_max=316)
    with pytest.raises(NotForDevices, match=r"9 images at 301 scales take 0.8 GiB"):
        put_on_devices(source, config, make_mesh(), channels=3)


def accelerators() -> Mesh:
    """Stands for a mesh of GPUs, of which nothing else is asked."""
    device = SimpleNamespace(platform="gpu")
    return SimpleNamespace(devices=np.array([device]))  # type: ignore[return-value]


def test_unasked_small_sets_alone_go_to_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Noise(*[(16, 16)] * 9)
    unasked = dataclasses.replace(CONFIG, on_device=None)
    assert put_on_devices(source, unasked, make_mesh(), channels=3) is None
    assert put_on_devices(source, unasked, make_mesh(), channels=3, on_cpu=True)
    off = dataclasses.replace(CONFIG, on_device=False)
    assert put_on_devices(source, off, accelerators(), channels=3) is None
    assert put_on_devices(source, off, make_mesh(), channels=3, on_cpu=True) is None
    size = 9 * 16 * 16 * 3
    monkeypatch.setattr(on_device, "LARGEST", size - 1)
    assert put_on_devices(source, unasked, accelerators(), channels=3) is None
    asked = put_on_devices(source, CONFIG, make_mesh(), channels=3)
    monkeypatch.setattr(on_device, "LARGEST", size)
    monkeypatch.setattr(on_device, "replicated", lambda mesh: asked.images.sharding)
    unasked_set = put_on_devices(source, unasked, accelerators(), channels=3)
    assert unasked_set.images.nbytes == size

import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import chex
import cv2
import grain
import numpy as np
import pytest

from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.base import CorruptImage, Source
from vgg_jax.data.collate import (
    Decoder,
    Row,
    TrainCrops,
    TrainDraws,
    color_shifts,
    stack,
    uniforms,
)
from vgg_jax.data.color import load_axes
from vgg_jax.data.pipeline import (
    Batch,
    decoding_threads,
    eval_batches,
    train_batches,
    train_order,
    whole_image_batches,
)
from vgg_jax.data.sources import open_source


class Pictures:
    """PNG pictures; each tells its number in blue, and the place of a pixel."""

    class_names = ("even", "odd")

    def __init__(self, shapes: list[tuple[int, int]]):
        self._shapes = shapes

    def __len__(self) -> int:
        return len(self._shapes)

    def pixels(self, index: int) -> np.ndarray:
        height, width = self._shapes[index]
        image = np.empty((height, width, 3), np.uint8)
        image[..., 0] = np.arange(height)[:, np.newaxis]
        image[..., 1] = np.arange(width)
        image[..., 2] = index
        return image

    def __getitem__(self, index: int) -> dict:
        png = cv2.imencode(".png", self.pixels(index)[..., ::-1])[1].tobytes()
        return {"image": png, "label": index % 2, "name": f"picture {index}"}


class Torn(Pictures):
    """Every fourth picture cannot be decoded."""

    def __getitem__(self, index: int) -> dict:
        example = super().__getitem__(index)
        if index % 4 == 1:
            example["image"] = example["image"][:-30]
        return example


class Corrupt(Pictures):
    """The first picture cannot be decoded."""

    def __getitem__(self, index: int) -> dict:
        example = super().__getitem__(index)
        return example | ({"image": b"torn"} if index == 0 else {})


class Signals(Pictures):
    """A label tells whether the process that decodes leaves signals alone."""

    def __getitem__(self, index: int) -> dict:
        ignored = all(
            signal.getsignal(number) == signal.SIG_IGN
            for number in (signal.SIGINT, signal.SIGTERM)
        )
        return super().__getitem__(index) | {"label": int(ignored)}


class Mislabeled(Pictures):
    """The fourth picture's label is another one than the classes have."""

    def __init__(self, label: int):
        super().__init__([(24, 24)] * 8)
        self._label = label

    def __getitem__(self, index: int) -> dict:
        example = super().__getitem__(index)
        return example | ({"label": self._label} if index == 3 else {})


CONFIG = DataConfig(
    dataset="folder", crop=16, scale_min=20, scale_max=20, num_threads=2
)
SQUARES = Pictures([(20, 20)] * 30)
MIXED = Pictures([(20 + 4 * (i % 3), 20 + 8 * (i % 2)) for i in range(29)])


def train(source=SQUARES, config=CONFIG, batch_size=8, seed=0, start_step=0, **kwargs):
    return train_batches(
        source,
        config,
        channels=3,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        **kwargs,
    )


def evaluate(source=SQUARES, config=CONFIG, batch_size=8, scale=20, crop=16, **kwargs):
    return list(
        eval_batches(
            source,
            config,
            channels=3,
            scale=scale,
            crop=crop,
            batch_size=batch_size,
            **kwargs,
        )
    )


def square_or_wide(height: int, width: int) -> tuple[int, int] | None:
    """Two buckets at Q=20: up to 20x20 and up to 20x32."""
    fitting = (shape for shape in [(20, 20), (20, 32)] if height == 20 <= shape[1])
    return next((shape for shape in fitting if width <= shape[1]), None)


def wholes(source, config=CONFIG, channels=3, rows=4, scale=20, **kwargs):
    return list(
        whole_image_batches(
            source,
            config,
            channels=channels,
            scale=scale,
            rows=rows if callable(rows) else lambda shape: rows,
            bucket=kwargs.pop("bucket", square_or_wide),
            **kwargs,
        )
    )


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def join(batches) -> dict[str, np.ndarray]:
    return {
        key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]
    }


def test_train_batch_shapes_and_types():
    (batch,) = take(train(), 1)
    assert set(batch) == {"image", "label", "weight"}
    chex.assert_shape(batch["image"], (8, 16, 16, 3))
    chex.assert_shape([batch["label"], batch["weight"]], (8,))
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["weight"].dtype == np.float32
    np.testing.assert_array_equal(batch["weight"], 1)


def test_every_epoch_has_each_example_once_in_another_order():
    stream = join(take(train(batch_size=6), 15))  # three epochs of 30
    numbers = stream["image"][:, 0, 0, 2].reshape(3, 30)
    np.testing.assert_array_equal(np.sort(numbers), [range(30)] * 3)
    assert len(np.unique(numbers, axis=0)) == 3
    np.testing.assert_array_equal(stream["label"], stream["image"][:, 0, 0, 2] % 2)


@pytest.mark.parametrize(("size", "rows"), [(1, 3), (10, 4), (55_000, 128)])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_the_order_is_that_of_grain(size, rows, seed):
    expected = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
    expected = expected.batch(rows, drop_remainder=True)
    found = train_order(size, seed, rows)
    for number in (0, 1, 2, size // rows, 3 * size // rows + 1, 100_000):
        np.testing.assert_array_equal(found[number], expected[number])
        assert found[number].dtype == expected[number].dtype


def test_nothing_is_dropped_when_the_batch_does_not_divide_the_epoch():
    stream = join(take(train(batch_size=7), 30))  # seven epochs
    numbers = stream["image"][:, 0, 0, 2].reshape(7, 30)
    np.testing.assert_array_equal(np.sort(numbers), [range(30)] * 7)


def test_crops_are_windows_at_every_place_half_of_them_mirrored():
    images = join(take(train(), 125))["image"].astype(int)
    mirrored = images[:, 0, 0, 1] > images[:, 0, -1, 1]
    upright = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    tops, lefts = upright[:, 0, 0, 0], upright[:, 0, 0, 1]
    for image, top, left in zip(upright, tops, lefts, strict=True):
        window = SQUARES.pixels(image[0, 0, 2])[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(image, window)
    places = np.zeros((5, 5))
    np.add.at(places, (tops, lefts), 1)
    assert places.min() > 15 and places.max() < 75  # 40 expected at each
    assert 0.4 < mirrored.mean() < 0.6


def test_flip_can_be_switched_off():
    config = dataclasses.replace(CONFIG, flip=False)
    images = join(take(train(config=config), 20))["image"].astype(int)
    assert (images[:, 0, 0, 1] < images[:, 0, -1, 1]).all()


def test_the_scale_is_drawn_from_every_integer_of_the_range():
    source = Pictures([(120, 120)] * 30)
    config = dataclasses.replace(CONFIG, scale_min=40, scale_max=44, crop=40)
    # Twenty epochs.
    images = join(take(train(source, config, batch_size=30), 20))["image"].astype(float)
    # Neighbors in a crop at scale S are 120 / S apart in the original.
    scales = 120 * 37 / (images[:, -2, 0, 0] - images[:, 1, 0, 0])
    drawn = 40 + (uniforms(0, 0, 600)[:, 0] * 5).astype(int)
    np.testing.assert_allclose(scales, drawn, atol=0.5)
    counts = np.bincount(drawn, minlength=46)
    assert counts[40:45].min() > 85 and counts[40:45].max() < 155  # 120 expected
    assert counts.sum() == counts[40:45].sum()
    # An example has another scale in another epoch.
    of_example = [set(drawn[images[:, 0, 0, 2] == i].tolist()) for i in range(30)]
    assert min(map(len, of_example)) >= 3


def test_training_crops_shrink_by_the_mean_where_the_config_asks():
    noise = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)

    class Noise(Pictures):
        def pixels(self, index: int) -> np.ndarray:
            return noise

    settings = {"scale_min": 50, "scale_max": 50, "crop": 50, "flip": False}
    for exact_shrinking in (False, True):
        config = dataclasses.replace(
            CONFIG, exact_shrinking=exact_shrinking, **settings
        )
        [batch] = take(train(Noise([(70, 80)] * 8), config), 1)
        is_mean = [
            any(
                np.array_equal(
                    image,
                    cv2.resize(
                        noise[:, left : left + 70],
                        (50, 50),
                        interpolation=cv2.INTER_AREA,
                    ),
                )
                for left in range(11)
            )
            for image in batch["image"]
        ]
        assert is_mean == [exact_shrinking] * 8


def test_uniforms_depend_on_seed_and_position_alone():
    stream = uniforms(3, 0, 1000)
    np.testing.assert_array_equal(uniforms(3, 123, 50), stream[123:173])
    assert np.unique(stream).size == 4000
    assert stream.min() >= 0 and stream.max() < 1
    np.testing.assert_allclose(stream.mean(0), 0.5, atol=0.05)
    assert np.unique(np.stack([uniforms(seed, 0, 1) for seed in range(9)])).size == 36
    # A checkpoint must go on with the same numbers under newer libraries.
    spelled_out = [
        0.014067035665647709,
        0.2577672456246177,
        0.47156538101528966,
        0.0914196711073687,
    ]
    np.testing.assert_array_equal(uniforms(0, 0, 1)[0], spelled_out)


def test_resume_is_exact():
    config = dataclasses.replace(CONFIG, color_shift=0.1)
    whole = take(train(config=config, seed=5), 12)
    again = take(train(config=config, seed=5, start_step=9), 3)
    chex.assert_trees_all_equal(again, whole[9:])


def test_color_shifts_vary_as_the_axes_say():
    axes = np.array([[3.0, 4.0, 0.0], [-0.4, 0.3, 0.0], [0.0, 0.0, 2.0]])
    shifts = color_shifts(0, 0, 20_000, axes)
    assert shifts.dtype == np.float32
    np.testing.assert_allclose(shifts.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(shifts.T), axes.T @ axes, atol=0.5)
    along = shifts @ (axes / np.linalg.norm(axes, axis=1, keepdims=True) ** 2).T
    assert 0.94 < np.mean(np.abs(along) < 1.96) < 0.96  # they are normal
    np.testing.assert_array_equal(color_shifts(0, 700, 9, axes), shifts[700:709])
    assert (color_shifts(1, 0, 9, axes) != shifts[:9]).all()


def test_batches_carry_a_shift_where_the_config_asks():
    config = dataclasses.replace(CONFIG, color_shift=0.1)
    plain, shifted = take(train(), 5), take(train(config=config), 5)
    for batch, other in zip(plain, shifted, strict=True):
        chex.assert_shape(other["shift"], (8, 3))
        chex.assert_trees_all_equal({k: other[k] for k in batch}, batch)
    expected = color_shifts(0, 8, 8, 0.1 * load_axes(config))
    np.testing.assert_array_equal(shifted[1]["shift"], expected)
    gray = dataclasses.replace(config, mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match="'imagenet' is of RGB, found 1 channel"):
        train_batches(SQUARES, gray, channels=1, batch_size=8, seed=0, start_step=0)


def test_the_seed_changes_the_order_and_the_crops():
    images = [
        join(take(train(seed=seed, batch_size=30), 2))["image"] for seed in (5, 6)
    ]
    orders = [image[:, 0, 0, 2] for image in images]
    assert (orders[0][:30] != orders[1][:30]).any()
    assert (orders[0][30:] != orders[1][:30]).any()  # nor is it only shifted
    crops = [
        TrainCrops(
            Decoder(SQUARES, 3, 10_000),
            TrainDraws(20, 20, False, shift_axes=None, seed=seed),
            crop=16,
        )
        for seed in (5, 6)
    ]
    first, second = (make(0, np.arange(30))["image"] for make in crops)
    assert (first[:, 0, 0, :2] != second[:, 0, 0, :2]).any(1).sum() > 15


def test_the_stream_does_not_depend_on_threads():
    config = dataclasses.replace(CONFIG, num_threads=0)
    chex.assert_trees_all_equal(take(train(config=config), 9), take(train(), 9))


@pytest.mark.parametrize(
    ("source", "cores", "processes", "threads"),
    [
        (SQUARES, 8, 0, 1),  # 20 x 20: several would wait for Python's lock
        (Pictures([(48, 47)]), 8, 0, 1),
        (Pictures([(48, 48)]), 8, 0, 8),
        (Pictures([(48, 48)]), 8, 3, 2),  # of each process
        (Pictures([(48, 48)]), 2, 3, 1),
        (Pictures([(48, 48)]), 100, 0, 16),
        (Torn([(20, 20), (48, 48)]), 4, 0, 1),
        (Corrupt([(20, 20)] * 4), 4, 0, 1),  # the first cannot be decoded
        (Corrupt([(20, 20)]), 4, 0, 4),
    ],
)
def test_threads_are_as_many_as_decode_the_most(
    source, cores, processes, threads, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    decoder = Decoder(source, 3, CONFIG.max_pixels)
    config = dataclasses.replace(CONFIG, num_threads=None, num_workers=processes)
    assert decoding_threads(decoder, config) == threads
    config = dataclasses.replace(config, num_threads=5)
    assert decoding_threads(decoder, config) == 5


def test_threads_are_chosen_where_nobody_says_how_many():
    config = dataclasses.replace(CONFIG, num_threads=None)
    chex.assert_trees_all_equal(take(train(config=config), 9), take(train(), 9))


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_all_processes_are_the_global_batch(processes):
    shifted = dataclasses.replace(CONFIG, scale_max=30, color_shift=0.1)
    settings = {"config": shifted, "start_step": 3}
    whole = take(train(**settings), 6)
    parts = [
        take(train(**settings, process_index=i, process_count=processes), 6)
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        chex.assert_trees_all_equal(join([part[step] for part in parts]), batch)


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_all_processes_are_the_evaluation_batch(processes):
    whole = evaluate(MIXED)
    parts = [
        evaluate(MIXED, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for step, batch in enumerate(whole):
        chex.assert_trees_all_equal(join([part[step] for part in parts]), batch)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 29])
def test_center_crops_of_every_example_once(size):
    source = Pictures([(20, 24)] * size)
    batches = evaluate(source)
    assert len(batches) == -(-size // 8)
    for batch in batches:
        assert set(batch) == {"image", "label", "weight", "index"}
        chex.assert_shape(batch["image"], (8, 16, 16, 3))
    stream = join(batches)
    real = stream["weight"] == 1
    np.testing.assert_array_equal(stream["index"][real], range(size))
    np.testing.assert_array_equal(stream["index"][~real], -1)
    np.testing.assert_array_equal(stream["weight"][~real], 0)
    np.testing.assert_array_equal(stream["label"][real], np.arange(size) % 2)
    for i in range(size):
        expected = source.pixels(i)[2:18, 4:20]
        np.testing.assert_array_equal(stream["image"][i], expected)


# At Q=20: 20x20, 20x24, 20x30 for both buckets; 20x50 and 25x20 for none.
SHAPES = [(20, 20), (40, 48), (20, 30), (10, 25), (25, 20)]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("processes", [1, 3])
def test_whole_images_of_every_example_once(batch_size, processes):
    source = Pictures([SHAPES[i % 5] for i in range(49)])
    seen = []
    for process in range(processes):
        batches = wholes(
            source,
            rows=batch_size,
            process_index=process,
            process_count=processes,
        )
        for batch in batches:
            assert set(batch) == {"image", "label", "weight", "index", "size"}
            assert batch["size"].dtype == np.int32
            shape = batch["image"].shape
            if shape[1:3] in [(20, 20), (20, 32)]:
                assert len(batch["image"]) == batch_size
            else:
                assert shape in [(1, 20, 50, 3), (1, 25, 20, 3)]
                assert batch["size"].tolist() == [list(shape[1:3])]
            for row in np.flatnonzero(batch["weight"]):
                index = batch["index"][row]
                assert index % processes == process
                expected = transforms.rescale(source.pixels(index), 20)
                height, width = batch["size"][row]
                image = batch["image"][row]
                np.testing.assert_array_equal(image[:height, :width], expected)
                assert not image[height:].any() and not image[:, width:].any()
                assert batch["label"][row] == index % 2
                seen.append(int(index))
            empty = batch["weight"] == 0
            assert (batch["index"][empty] == -1).all()
            assert (batch["size"][empty] == shape[1:3]).all()
    assert sorted(seen) == list(range(49))


def test_the_last_of_a_bucket_fill_up_a_larger_one():
    # Seven squares and six wide ones: two batches of four are full at once, and three
    # squares share one with two wide ones, where two have no room for four.
    source = Pictures([(20, 20)] * 7 + [(20, 30)] * 6)
    full = [(20, 20), (20, 32), (20, 32), (20, 20)]
    assert [b["image"].shape[1:3] for b in wholes(source)] == full
    assert [int(b["weight"].sum()) for b in wholes(source)] == [4, 4, 4, 1]
    # None is left for a batch of squares.
    source = Pictures([(20, 20)] * 6 + [(20, 30)] * 6)
    assert [b["image"].shape[1:3] for b in wholes(source)] == full[:3]


def test_a_batch_has_as_many_images_as_its_bucket_says():
    source = Pictures([(20, 20)] * 9 + [(20, 30)] * 5)
    batches = wholes(source, rows=lambda shape: {20: 4, 32: 2}[shape[1]])
    shapes = [batch["image"].shape[:3] for batch in batches]
    # The last square goes out with the last wide one.
    assert shapes == [(4, 20, 20)] * 2 + [(2, 20, 32)] * 3
    assert sum(int(batch["weight"].sum()) for batch in batches) == 14


def test_what_no_image_fills_is_black(monkeypatch):
    """Also where the batch's memory held something else."""
    used = np.full((4, 6, 6, 3), 99, np.uint8)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: used)
    whole, small = np.full((6, 6, 3), 7, np.uint8), np.full((2, 3, 3), 8, np.uint8)
    rows = [Row(5, 1, whole), Row(6, 1, None, "corrupt"), Row(7, 1, small)]
    batch = stack(iter(rows), 4, whole.shape)
    expected = np.zeros((4, 6, 6, 3), np.uint8)
    expected[0] = 7
    expected[2, :2, :3] = 8
    np.testing.assert_array_equal(batch["image"], expected)
    np.testing.assert_array_equal(batch["weight"], [1, 0, 1, 0])
    np.testing.assert_array_equal(batch["index"], [5, 6, 7, -1])
    assert batch["corrupt"] == ["corrupt"]


def test_gray_batches():
    config = dataclasses.replace(CONFIG, mean=(0.0,), std=(1.0,))
    kwargs = {"channels": 1, "batch_size": 4}
    (batch,) = take(train_batches(SQUARES, config, seed=0, start_step=0, **kwargs), 1)
    chex.assert_shape(batch["image"], (4, 16, 16, 1))
    batches = eval_batches(SQUARES, config, scale=20, crop=16, **kwargs)
    chex.assert_shape(next(batches)["image"], (4, 16, 16, 1))
    batches.close()
    config = dataclasses.replace(config, on_corrupt_image="skip")
    batches = wholes(Torn([(20, 20)] * 8), config, channels=1)
    chex.assert_shape([batch["image"] for batch in batches], (4, 20, 20, 1))
    np.testing.assert_array_equal(join(batches)["weight"], [1, 0, 1, 1] * 2)


def test_fashion_mnist_streams(fashion_mnist):
    source = open_source(fashion_mnist, "validation")
    kwargs = {"channels": 1, "batch_size": 128}
    stream = join(
        list(eval_batches(source, fashion_mnist, scale=28, crop=28, **kwargs))
    )
    assert stream["weight"].sum() == len(source)
    for i in (0, 77, 2999):
        expected = transforms.decode(source[i]["image"], 1)
        np.testing.assert_array_equal(stream["image"][i], expected)
        assert stream["label"][i] == source[i]["label"]
    train = train_batches(source, fashion_mnist, seed=0, start_step=0, **kwargs)
    epoch = join(take(train, 24))
    labels = np.bincount(epoch["label"][:3000])
    np.testing.assert_array_equal(labels, np.bincount(stream["label"][:3000]))
    assert epoch["image"].mean() > stream["image"][:3000].mean()  # cut from enlarged


def test_corrupt_image_stops_training_and_evaluation():
    torn = Torn([(20, 20)] * 30)
    with pytest.raises(CorruptImage, match=r"picture .*on_corrupt_image"):
        take(train(torn), 4)
    for batches in (evaluate, wholes):
        with pytest.raises(CorruptImage, match="picture 1:"):
            batches(torn)


def test_corrupt_images_can_be_left_out_and_are_named_once(caplog):
    torn = Torn([(20, 20)] * 30)
    config = dataclasses.replace(CONFIG, on_corrupt_image="skip")
    with caplog.at_level(logging.WARNING, logger="absl"):
        stream = join(take(train(torn, config, batch_size=6), 10))
    assert stream["weight"].sum() == 2 * 22
    left_out = stream["weight"] == 0
    assert not stream["image"][left_out].any()
    assert set(stream["image"][~left_out, 0, 0, 2] % 4) == {0, 2, 3}
    named = sorted(record.getMessage().split(":")[0] for record in caplog.records)
    assert named == sorted(f"cannot decode picture {i}" for i in range(1, 30, 4))
    assert "number 8" in caplog.records[-1].getMessage()
    for batches in (evaluate, wholes):
        stream = join(batches(torn, config))
        numbers = np.sort(stream["index"][stream["weight"] == 1])
        np.testing.assert_array_equal(numbers, [i for i in range(30) if i % 4 != 1])
        all_numbers = stream["index"][stream["index"] >= 0]
        np.testing.assert_array_equal(np.sort(all_numbers), range(30))


def torn_folder(config: DataConfig) -> tuple[Source, str]:
    """The training pictures of which one is truncated, and its name."""
    source = open_source(config, "train")
    path = Path(source[7]["name"])
    path.write_bytes(path.read_bytes()[:-99])
    return source, str(path)


def test_worker_processes_give_the_same_batches(folder_config, caplog):
    config = dataclasses.replace(folder_config, on_corrupt_image="skip")
    source, torn = torn_folder(config)
    here = take(train(source, config, start_step=2), 30)
    caplog.clear()
    in_workers = dataclasses.replace(config, num_workers=2)
    there = take(train(source, in_workers, start_step=2), 30)
    chex.assert_trees_all_equal(there, here)
    assert sum(torn in record.getMessage() for record in caplog.records) == 1


@pytest.mark.slow
def test_worker_processes_evaluate_the_same(folder_config):
    config = dataclasses.replace(folder_config, on_corrupt_image="skip")
    source, torn = torn_folder(config)
    bucket = square_or_wide  # holds none of them: each comes alone
    here = wholes(source, config, scale=32, bucket=bucket)
    in_workers = dataclasses.replace(config, num_workers=2)
    there = wholes(source, in_workers, scale=32, bucket=bucket)
    chex.assert_trees_all_equal(there, here)
    raising = dataclasses.replace(in_workers, on_corrupt_image="raise")
    with pytest.raises(CorruptImage, match=Path(torn).name):
        wholes(source, raising, scale=32, bucket=bucket)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 21}, "crop 21, scale_min 20"),
        ({"on_corrupt_image": "stop"}, "unknown on_corrupt_image 'stop'"),
        ({"mean": (0.0,), "std": (1.0,)}, "expected 3, found 1"),
        ({"mean": (0.0,)}, "got 1 and 3"),
    ],
)
def test_settings_are_checked_when_the_pipeline_is_made(changes, message):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        train(config=config)
    with pytest.raises(ValueError, match=message):
        evaluate(config=config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "multiple of the 2 processes, found 9"),
        ({"batch_size": 0}, "positive multiple"),
        ({"process_index": 1}, r"in \[0, 1\), found 1"),
        ({"source": Pictures([])}, "no examples"),
    ],
)
def test_arguments_are_checked_when_the_pipeline_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(**arguments)
    with pytest.raises(ValueError, match=message):
        eval_batches(
            **{"source": SQUARES, "batch_size": 8, **arguments},
            config=CONFIG,
            channels=3,
            scale=20,
            crop=16,
        )
    if "batch_size" not in arguments:
        with pytest.raises(ValueError, match=message):
            wholes(**{"source": SQUARES, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
        ({"start_step": -1}, "start_step"),
    ],
)
def test_train_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(**arguments)


@pytest.mark.parametrize(("scale", "crop"), [(15, 16), (0, 0), (20, 0)])
def test_evaluation_scale_and_crop_must_fit(scale, crop):
    with pytest.raises(ValueError, match=f"found crop {crop}, scale {scale}"):
        eval_batches(SQUARES, CONFIG, channels=3, scale=scale, crop=crop, batch_size=8)
    with pytest.raises(ValueError, match="found 0"):
        wholes(SQUARES, scale=0)


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="found 2"):
        eval_batches(SQUARES, CONFIG, channels=2, scale=20, crop=16, batch_size=8)


def test_signals_are_the_main_process_to_handle():
    """They are sent to all processes, and here to workers that have just begun."""
    begun = threading.Event()

    def stop_workers():
        while not begun.wait(0.01):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)
                os.kill(worker.pid, signal.SIGINT)

    config = dataclasses.replace(CONFIG, num_workers=1)
    batches = eval_batches(
        Signals([(20, 20)] * 8), config, channels=3, scale=20, crop=16, batch_size=4
    )
    thread = threading.Thread(target=stop_workers)
    thread.start()
    assert next(batches)["label"].tolist() == [1] * 4
    begun.set()
    thread.join()
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    assert next(batches)["label"].tolist() == [1] * 4
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    batches.close()


def test_padded_crops_differ_in_the_window_alone(folder_config):
    source = open_source(folder_config, "train")
    config = dataclasses.replace(folder_config, pad=2)

    def take(config: DataConfig, start_step: int, count: int) -> list[Batch]:
        batches = train_batches(
            source, config, channels=3, batch_size=8, seed=3, start_step=start_step
        )
        taken = list(itertools.islice(batches, count))
        batches.close()
        return taken

    plain, padded = take(folder_config, 0, 30), take(config, 0, 30)
    for before, after in zip(plain, padded, strict=True):
        assert after.keys() - before.keys() == {"offset"}
        np.testing.assert_array_equal(before["image"], after["image"])
    offsets = np.concatenate([batch["offset"] for batch in padded])
    assert offsets.dtype == np.int32 and offsets.shape == (240, 2)
    for axis in (0, 1):
        counts = np.bincount(offsets[:, axis] + 2, minlength=5)
        assert len(counts) == 5 and counts.min() > 25
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.2
    [resumed] = take(config, 17, 1)
    np.testing.assert_array_equal(resumed["offset"], padded[17]["offset"])


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_of_no_class_is_refused_with_the_pictures_name(label: int) -> None:
    config = dataclasses.replace(CONFIG, on_corrupt_image="skip")
    source = Mislabeled(label)
    message = f"a label from 0 to 1, as there are 2 classes, got {label} in picture 3"
    for batches in (
        train_batches(source, config, channels=3, batch_size=8, seed=0, start_step=0),
        eval_batches(source, config, channels=3, scale=20, crop=16, batch_size=8),
    ):
        with pytest.raises(ValueError, match=message):
            next(batches)

"""Measures rates of the input pipeline, and what each of its tricks gains.

python -m benchmarks.data [--write FILE]

Pictures are 500x375 and 1600x1200 JPEGs made of photographs that scikit-learn and
matplotlib ship. Rates are images a second of one thread, where nothing else is said:
the median of three turns, with the slowest and the fastest.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import matplotlib
import numpy as np
import sklearn.datasets

from benchmarks import record
from vgg_jax.compilation import keep_memory
from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.base import Example
from vgg_jax.data.jpeg_window import decode_window
from vgg_jax.data.on_device import put_on_devices
from vgg_jax.data.pipeline import train_batches
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.preprocessing import IMAGENET

SECONDS = 1.5  # how long a turn takes
TURNS = 3  # of each measurement
SHORT_SIDE, CROP, BATCH = 256, 224, 64
SIZES = ((500, 375), (1600, 1200))  # of the pictures, width and height
READERS = ((0, 1), (0, 2), (0, 4), (2, 1))  # processes, and threads of each
IMAGENET_IMAGES, FASHION_MNIST_IMAGES = 1_281_167, 60_000
LARGEST_SCALES = (256, 512)
SIDES = (28, 32, 48, 64, 96, 128)  # of small pictures, in pixels


class Encoded:
    """A source of encoded pictures in memory, which repeats them.

    Args:
        files: the pictures.
        count: how many it has; an order of few takes longer to draw.
    """

    class_names = ("one",)

    def __init__(self, files: list[bytes], count: int = IMAGENET_IMAGES):
        self._files = files
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Example:
        data = self._files[index % len(self._files)]
        return {"image": data, "label": 0, "name": str(index)}


def make_jpegs(width: int, height: int) -> list[bytes]:
    """Cuts windows from photographs and encodes them at a JPEG quality of 92."""
    landscapes = Path(sklearn.datasets.__file__).parent / "images"
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    files = []
    rng = np.random.default_rng(0)
    for path in (landscapes / "china.jpg", landscapes / "flower.jpg", portrait):
        image = cv2.imread(str(path))
        assert image is not None
        for _ in range(5):
            rows = rng.integers(300, image.shape[0])
            columns = rows * width // height
            if columns > image.shape[1]:
                rows, columns = image.shape[1] * height // width, image.shape[1]
            top = rng.integers(image.shape[0] - rows + 1)
            left = rng.integers(image.shape[1] - columns + 1)
            window = image[top : top + rows, left : left + columns]
            resized = cv2.resize(window, (width, height), interpolation=cv2.INTER_CUBIC)
            quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
            files.append(cv2.imencode(".jpg", resized, quality)[1].tobytes())
    return files


Rates = list[float]  # a second, of each turn
Show = Callable[[str, Rates], None]  # takes the name of what was measured


def measure_rate(work: Callable[[int], object], units: int = 1) -> Rates:
    """Calls `work` with 0, 1, 2, ... for `SECONDS` in each turn.

    A call does as many units as `units`.
    """
    work(0)
    rates, calls = [], 0
    for _ in range(TURNS):
        start, before = time.perf_counter(), calls
        while time.perf_counter() - start < SECONDS:
            work(calls)
            calls += 1
        rates.append(units * (calls - before) / (time.perf_counter() - start))
    return rates


def image_rates(show: Show, files: list[bytes]) -> None:
    """Prints how fast one image is prepared, with and without the tricks."""

    places = np.random.default_rng(0).random((1000, 2)).tolist()

    def whole(i: int) -> np.ndarray:
        return transforms.decode(files[i % len(files)], 3)

    def part(i: int) -> np.ndarray:
        return transforms.decode(files[i % len(files)], 3, "", SHORT_SIDE)

    def rescale_first(image: np.ndarray) -> np.ndarray:
        image = transforms.rescale(image, SHORT_SIDE)
        return transforms.cut(image, CROP, transforms.place_crop(0.5, 0.5))[0]

    def crop_alone(i: int) -> np.ndarray:
        crop = transforms.Crop(SHORT_SIDE, CROP, *places[i % len(places)])
        return transforms.decode_crop(files[i % len(files)], 3, "", crop)[0]

    def crop_first(image: np.ndarray, exact_shrinking: bool = False) -> np.ndarray:
        crop = transforms.Crop(SHORT_SIDE, CROP, 0.5, 0.5, exact_shrinking)
        return transforms.rescaled_crop(image, crop)

    show("decode whole", measure_rate(whole))
    show("decode as the pipeline does", measure_rate(part))
    show("decode whole, rescale, crop", measure_rate(lambda i: rescale_first(whole(i))))
    show(
        "decode whole, crop, rescale exactly",
        measure_rate(lambda i: crop_first(whole(i), exact_shrinking=True)),
    )
    show("decode whole, crop, rescale", measure_rate(lambda i: crop_first(whole(i))))
    show(
        "decode as the pipeline does, crop, rescale",
        measure_rate(lambda i: crop_first(part(i))),
    )
    show("decode a random crop, rescale", measure_rate(crop_alone))


def train_rate(files: list[bytes], config: DataConfig) -> Rates:
    """Returns how many crops a second `train_batches` makes of encoded pictures."""
    batches = train_batches(
        Encoded(files), config, channels=3, batch_size=BATCH, seed=0, start_step=0
    )
    for _ in range(8):  # what was read ahead
        next(batches)
    rate = measure_rate(lambda i: next(batches), BATCH)
    batches.close()
    return rate


def pipeline_rates(show: Show, files: list[bytes]) -> None:
    """Prints the rates of `train_batches` by threads and processes, on all cores."""
    for (workers, threads), largest in itertools.product(READERS, LARGEST_SCALES):
        config = DataConfig(
            dataset="imagenet2012",
            color_shift=0.1,
            scale_min=SHORT_SIDE,
            scale_max=largest,
            num_workers=workers,
            num_threads=threads,
        )
        scales = f"S = {SHORT_SIDE}" + f" to {largest}" * (largest > SHORT_SIDE)
        show(
            f"train_batches, {workers} processes, {threads} threads each, {scales}",
            train_rate(files, config),
        )


def thread_rates(show: Show) -> None:
    """Prints the rates of `train_batches` of small pictures by threads."""
    for side in SIDES:
        files = make_jpegs(side, side)
        for threads in (1, 2, 4):
            config = DataConfig(
                dataset="folder",
                crop=side,
                scale_min=side,
                scale_max=side,
                num_threads=threads,
            )
            rate = train_rate(files, config)
            show(f"train_batches, {side}x{side}, {threads} threads", rate)


def small_set_rates(show: Show) -> None:
    """Prints rates of 28x28 images, cropped on the host and on the device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 28, 28, 1), np.uint8)
    files = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    source = Encoded(files, FASHION_MNIST_IMAGES)
    config = DataConfig(
        dataset="fashion_mnist",
        crop=32,
        scale_min=32,
        scale_max=34,
        mean=(73.0,),
        std=(90.0,),
        on_device=True,
        num_threads=1,
    )
    place: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "start_step": 0}
    mesh = make_mesh(jax.devices()[:1])
    device_set = put_on_devices(source, config, mesh, channels=1)
    assert device_set is not None
    batches = train_batches(source, config, channels=1, **place)
    draws = device_set.train_draws(**place)
    for _ in range(8):  # what was read ahead
        next(batches), next(draws)
    show("on the host", measure_rate(lambda i: next(batches), BATCH))
    show("what is drawn for the device", measure_rate(lambda i: next(draws), BATCH))
    rows = shard_batch(mesh, next(draws))
    show(
        "cut on the device",
        measure_rate(
            lambda i: device_set.cut(rows)["image"].block_until_ready(), BATCH
        ),
    )
    batches.close()
    draws.close()


def normalization_rates(show: Show) -> None:
    """Prints rates of mean and color shift in the worker and on the device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, CROP, CROP, 3), np.uint8)
    shift = rng.normal(0, 7, (BATCH, 3)).astype(np.float32)
    mean = np.asarray(IMAGENET.mean, np.float32)
    on_device = jax.jit(lambda images, shift: IMAGENET(images, shift))
    without_shift = jax.jit(lambda images: IMAGENET(images))

    def in_worker(i: int) -> np.ndarray:
        return np.stack(
            [
                image.astype(np.float32) + (s - mean)
                for image, s in zip(images, shift, strict=True)
            ]
        )

    def send(*arrays: np.ndarray) -> list[jax.Array]:
        # New buffers, as batches have; JAX may otherwise share the host's memory.
        return [jax.device_put(array.copy()) for array in arrays]

    floats = in_worker(0)
    show("in the worker: float32 image - mean + shift", measure_rate(in_worker, BATCH))
    show(
        "float32 to the device",
        measure_rate(lambda i: jax.block_until_ready(send(floats)), BATCH),
    )
    show(
        "uint8 to the device",
        measure_rate(lambda i: jax.block_until_ready(send(images, shift)), BATCH),
    )
    sent, sent_shift = send(images, shift)
    show(
        "on the device: mean",
        measure_rate(lambda i: without_shift(sent).block_until_ready(), BATCH),
    )
    show(
        "on the device: mean and shift",
        measure_rate(lambda i: on_device(sent, sent_shift).block_until_ready(), BATCH),
    )


def main(command_line: Sequence[str] | None = None) -> None:
    """Prints all rates."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    record.add_flag(parser)
    measured = record.Record.begin(parser.parse_args(command_line).write)
    keep_memory()  # as train.py does
    section = ""

    def begin(name: str) -> None:
        nonlocal section
        section = name
        print(name, flush=True)

    def show(name: str, rates: Rates) -> None:
        print(f"  {name:52} {record.spread(rates)}", flush=True)
        measured.add(section=section, name=name, per_second=rates)

    data = make_jpegs(32, 32)[0]
    windows = decode_window(data, 0, 0, 16, 16) is not None
    print(
        f"images/s, S = {SHORT_SIDE}, crop {CROP}; {cv2.getNumThreads()} OpenCV "
        f"threads; {'with' if windows else 'without'} nvImageCodec"
    )
    for width, height in SIZES:
        files = make_jpegs(width, height)
        size = sum(map(len, files)) / len(files) / 1000
        begin(f"{width}x{height}, {size:.0f} kB")
        image_rates(show, files)
    begin("batches")
    pipeline_rates(show, make_jpegs(*SIZES[0]))
    thread_rates(show)
    begin("batches of 28x28 images in memory, crop 32, S from 32 to 34, 1 thread")
    small_set_rates(show)
    begin(f"normalization, {jax.default_backend()}")
    normalization_rates(show)


if __name__ == "__main__":
    main()

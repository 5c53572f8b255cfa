"""This module turns a source into batches of numpy arrays, by Grain pipelines."""

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import TypeVar

import grain
import numpy as np
from absl import flags, logging
from grain.experimental import index_shuffle

from vgg_jax.config import DataConfig, validate
from vgg_jax.data import transforms
from vgg_jax.data.base import CorruptImage, Source
from vgg_jax.data.collate import (
    Crops,
    Decoder,
    Moments,
    RawBatch,
    Row,
    TrainCrops,
    TrainDraws,
    WholeImages,
    stack_padded,
)
from vgg_jax.data.color import load_axes

Batch = dict[str, np.ndarray]
T = TypeVar("T")

# From the height and width of an image to the shape that it is padded to, in pixels;
# None for an image that is not to share a batch.
Bucket = Callable[[int, int], tuple[int, int] | None]
# From the shape that images are padded to, in pixels, to how many share a batch.
RowsOfShape = Callable[[tuple[int, int]], int]

TRAIN_KEYS = ("image", "label", "weight")
EVAL_KEYS = (*TRAIN_KEYS, "index")
MOMENTS_KEYS = ("count", "first", "second")
MOMENTS_CHUNK = 64  # images to a sum
WHOLE_CHUNK = 8  # whole images that a thread decodes one after another
# Of images of fewer pixels one thread decodes the most: several wait for Python's lock
# for longer than they decode.
SMALL = 48 * 48
MOST_THREADS = 16  # unasked; each keeps batches in memory

# Requests to stop, which a process that decodes leaves to the one it works for.
SIGNALS_OF_PARENT = (signal.SIGINT, signal.SIGTERM)


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    channels: int,
    batch_size: int,
    seed: int,
    start_step: int,
    with_boxes: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Gives endless batches of random crops, section 3.1: this process's rows of each.

    A batch is {"image": uint8 [b, crop, crop, channels] with pixels 0-255, "label":
    int32 [b], "weight": float32 [b]} with b = batch_size // process_count; weight 0
    marks an image that could not be decoded. With `config.color_shift` there is also
    "shift": float32 [b, channels], to be added to the image's pixels; with `config.pad`
    "offset": int32 [b, 2], how far the window on the padded image moves down and right,
    see `vgg_jax.preprocessing.translate`; `with_boxes` also "box": float32 [b, 4], the
    object's box relative to the crop, or to that window, as `vgg_jax.boxes` has it,
    whether it lies in the crop or not.

    Examples are reshuffled every epoch and none is dropped. Everything random depends
    on `seed` and the example's position in the stream alone: starting from `start_step`
    continues exactly, and the rows of all processes together do not depend on their
    number.

    Raises:
        ValueError: settings that cannot work.
        FileNotFoundError: the axes of the color shift are not computed yet.
        CorruptImage: while iterating, unless `config.on_corrupt_image` is "skip".
    """
    _validate_arguments(
        source, config, channels, batch_size, process_index, process_count
    )
    _validate_boxes(source, with_boxes)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), found {seed}")
    if start_step < 0:
        raise ValueError(f"start_step cannot be negative, found {start_step}")
    decoder = Decoder(source, channels, config.max_pixels)
    crops = TrainCrops(
        decoder,
        train_draws(config, seed),
        config.crop,
        config.exact_shrinking,
    )
    order = train_order(len(source), seed, batch_size // process_count)
    mine = order.map_with_index(crops)[process_index::process_count][start_step:]
    keys = [*TRAIN_KEYS]
    keys += ["shift"] * (config.color_shift > 0) + ["offset"] * (config.pad > 0)
    keys += ["box"] * with_boxes
    return report_corrupt(read_decoded(mine, decoder, config), config, keys=keys)


def train_draws(config: DataConfig, seed: int) -> TrainDraws:
    """Returns what draws for the crops that a configuration trains on.

    Raises:
        FileNotFoundError: the axes of the color shift are not computed yet.
    """
    shifts = config.color_shift > 0
    return TrainDraws(
        config.scale_min,
        config.scale_max,
        config.flip,
        shift_axes=config.color_shift * load_axes(config) if shifts else None,
        seed=seed,
        pad=config.pad,
    )


def train_order(size: int, seed: int, rows: int) -> grain.MapDataset[np.ndarray]:
    """Gives the numbers of the examples of each batch of `rows`, without end.

    Every epoch of `size` examples has each once, in an order of its own. With several
    processes the first has the first batch, the next the second, and so on in turn.
    """
    return grain.MapDataset.range(sys.maxsize // rows).map(_Order(size, seed, rows))


class _Order:
    """Maps the number of a batch to those of its examples, int64 [rows].

    It is the order of Grain's `MapDataset.range(size).seed(seed).shuffle().repeat()`,
    in batches, in less than half of its time.
    """

    def __init__(self, size: int, seed: int, rows: int):
        self._size, self._rows = size, rows
        # As Grain makes it for a transformation right after the seed.
        self._seed = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])

    def __call__(self, number: int) -> np.ndarray:
        examples = []
        for position in range(number * self._rows, (number + 1) * self._rows):
            epoch, index = divmod(position, self._size)
            seed = (self._seed + epoch) % 2**32
            examples.append(
                index_shuffle(index, max_index=self._size - 1, seed=seed, rounds=4)
            )
        return np.array(examples)


def eval_batches(
    source: Source,
    config: DataConfig,
    *,
    channels: int,
    scale: int,
    crop: int,
    batch_size: int,
    layout: transforms.CropLayout = transforms.center,
    with_boxes: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Gives crops of each example once, at short side `scale`: this process's rows.

    A batch is as in `train_batches`, with "index": int32 [b], the example's number in
    the source. A layout of several crops makes "image" uint8 [b * crops, crop, crop,
    channels], the crops of an example one after another. `with_boxes` adds "box":
    float32, one row for each image of the batch and relative to it. Rows that fill up a
    batch have weight 0 and index -1.

    Raises:
        ValueError: settings that cannot work.
        CorruptImage: while iterating, unless `config.on_corrupt_image` is "skip".
    """
    _validate_arguments(
        source, config, channels, batch_size, process_index, process_count
    )
    _validate_boxes(source, with_boxes)
    if not 1 <= crop <= scale:
        raise ValueError(
            "expected 1 <= crop <= scale, so that the crop fits into the rescaled "
            f"image; found crop {crop}, scale {scale}"
        )
    padded = -(-len(source) // batch_size) * batch_size
    decoder = Decoder(source, channels, config.max_pixels)
    batches = (
        grain.MapDataset.range(padded)
        .batch(batch_size // process_count)
        .map(Crops(decoder, scale=scale, crop=crop, layout=layout))
    )
    mine = batches[process_index::process_count]
    keys = (*EVAL_KEYS, *(["box"] * with_boxes))
    return report_corrupt(read_decoded(mine, decoder, config), config, keys=keys)


def whole_image_batches(
    source: Source,
    config: DataConfig,
    *,
    channels: int,
    scale: int,
    bucket: Bucket,
    rows: RowsOfShape,
    with_boxes: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Gives whole images at short side `scale`: this process's share, each once.

    Images of one bucket share a batch, in another order than the source's. It is as in
    `eval_batches`, with "size": int32 [b, 2], the height and width of each image in the
    upper left corner of its row; b is `rows` of the bucket. An image that no bucket
    holds comes alone, b = 1, in an array of its own shape. Each process reads only its
    share, and batches of several processes have nothing to do with each other.
    `with_boxes` adds "box": float32 [b, 4], relative to each image without its padding.

    Args:
        source, config, channels, process_index, process_count: the arguments of the
            same names of `eval_batches`.
        scale: short side Q, in pixels.
        bucket: (height, width) -> the shape that such an image is padded to, or None.
        rows: the shape of a bucket -> how many images this process gives at once, at
            least 1.

    Raises:
        ValueError: settings that cannot work.
        CorruptImage: while iterating, unless `config.on_corrupt_image` is "skip".
    """
    _validate_arguments(
        source, config, channels, process_count, process_index, process_count
    )
    _validate_boxes(source, with_boxes)
    if scale < 1:
        raise ValueError(f"expected a scale of at least 1 pixel, found {scale}")
    examples = grain.MapDataset.range(len(source))[process_index::process_count]
    decoder = Decoder(source, channels, config.max_pixels)
    chunks = examples.batch(WHOLE_CHUNK).map(WholeImages(decoder, scale))
    # An image that could not be decoded counts as a square.
    batches = _by_bucket(
        read_decoded(chunks, decoder, config), bucket, rows, (scale, scale, channels)
    )
    keys = (*EVAL_KEYS, "size", *(["box"] * with_boxes))
    return report_corrupt(batches, config, keys=keys)


def moment_batches(
    source: Source, config: DataConfig, *, channels: int, numbers: np.ndarray
) -> Iterator[Batch]:
    """Gives the sums of `collate.Moments` over the examples of these numbers.

    Raises:
        ValueError: settings that cannot work.
        CorruptImage: while iterating, unless `config.on_corrupt_image` is "skip".
    """
    _validate_arguments(source, config, channels, 1, 0, 1)
    decoder = Decoder(source, channels, config.max_pixels)
    sums = Moments(decoder, config.scale_min)
    chunks = grain.MapDataset.source(numbers).batch(MOMENTS_CHUNK).map(sums)
    ahead: Generator[RawBatch] = read_decoded(chunks, decoder, config)
    return report_corrupt(ahead, config, keys=MOMENTS_KEYS)


def _by_bucket(
    chunks: Generator[list[Row]],
    bucket: Bucket,
    rows: RowsOfShape,
    default_shape: tuple[int, ...],
) -> Generator[RawBatch]:
    """Gives batches of one bucket each, filled up only at the end."""
    waiting: dict[tuple[int, int], list[Row]] = {}
    channels = default_shape[-1]
    with contextlib.closing(chunks):
        for row in itertools.chain.from_iterable(chunks):
            shape = default_shape if row.image is None else row.image.shape
            padded = bucket(shape[0], shape[1])
            if padded is None:
                yield stack_padded([row], 1, shape)
                continue
            images = waiting.setdefault(padded, [])
            images.append(row)
            if len(images) == rows(padded):
                del waiting[padded]
                yield stack_padded(images, len(images), (*padded, channels))
    # The last few images of each: a larger bucket takes in those of smaller ones,
    # rather than go out half empty.
    for padded in sorted(waiting, key=math.prod, reverse=True):
        images, count = waiting.pop(padded), rows(padded)
        for height, width in sorted(waiting, key=math.prod, reverse=True):
            if height <= padded[0] and width <= padded[1]:
                smaller = waiting[height, width]
                while smaller and len(images) < count:
                    images.append(smaller.pop())
        if images:
            yield stack_padded(images, count, (*padded, channels))


def read_decoded(
    dataset: grain.MapDataset[T], decoder: Decoder, config: DataConfig
) -> Generator[T]:
    """Reads ahead what a decoder makes, by the processes and threads of `config`."""
    threads = decoding_threads(decoder, config)
    return read_ahead(dataset, threads=threads, processes=config.num_workers)


def decoding_threads(decoder: Decoder, config: DataConfig) -> int:
    """Returns `config.num_threads`, or if it is None how many threads are the fastest.

    The first image stands for all; of the first ten, the first that can be decoded.
    """
    if config.num_threads is not None:
        return config.num_threads
    side = math.isqrt(SMALL)  # a large JPEG is not decoded whole
    first = (decoder(i, side).image for i in range(min(10, len(decoder.source))))
    image = next((image for image in first if image is not None), None)
    if image is not None and image.shape[0] * image.shape[1] < SMALL:
        return 1
    return min(max(1, cores() // max(1, config.num_workers)), MOST_THREADS)


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def read_ahead(
    dataset: grain.MapDataset[T], *, threads: int, processes: int = 0
) -> Generator[T]:
    """Reads ahead in threads, or in worker processes with threads each.

    Args:
        dataset: what is read.
        threads: of each process; 0 reads nothing ahead.
        processes: how many workers there are; 0 reads in this process.
    """
    options = grain.ReadOptions(
        num_threads=threads,
        # Counts batches; Grain's default of 500 would fill the memory.
        prefetch_buffer_size=max(2, threads),
    )
    elements = dataset.to_iter_dataset(options)
    if processes:
        if not flags.FLAGS.is_parsed():
            # Workers are told Grain's flags, which outside absl.app nobody parses.
            flags.FLAGS.mark_as_parsed()
        elements = elements.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=processes),
            worker_init_fn=_serve_parent,
        )
    with contextlib.closing(iter(elements)) as iterator:
        with _signals_blocked() if processes else contextlib.nullcontext():
            first = list(itertools.islice(iterator, 1))
        yield from first
        del first
        yield from iterator


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Has processes that begin inside of `with` never see the signals of the parent.

    They inherit what is blocked, and so are deaf to them before `_serve_parent` runs.
    """
    resource_tracker.ensure_running()  # which would unblock them as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_OF_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_parent(worker: int, workers: int) -> None:
    """Ties a worker's life to its parent's, which decides when the work is done.

    Signals are the parent's: terminals and schedulers send them to all processes, and
    the run needs one more batch. When the parent is gone, however it ended, so is the
    worker. (Linux can signal a parent's death, but counts that of the thread which
    started the worker, and Grain starts it in a thread of its own.)
    """
    for number in SIGNALS_OF_PARENT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def report_corrupt(
    batches: Generator[RawBatch], config: DataConfig, keys: Sequence[str]
) -> Generator[Batch]:
    """Gives the `keys` of each batch; raises or logs what could not be decoded.

    It runs in the main process, so that a file is named once.
    """
    named: set[str] = set()
    with contextlib.closing(batches):
        for batch in batches:
            for problem in batch["corrupt"]:
                if config.on_corrupt_image == "raise":
                    raise CorruptImage(
                        f'{problem}; on_corrupt_image="skip" leaves such images out'
                    )
                if problem not in named:
                    named.add(problem)
                    logging.warning("%s; left out, number %d", problem, len(named))
            yield {key: batch[key] for key in keys}


def _validate_arguments(
    source: Source,
    config: DataConfig,
    channels: int,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> None:
    validate(config)
    if channels not in (1, 3):
        raise ValueError(f"expected 1 (gray) or 3 (RGB) channels, found {channels}")
    if len(config.mean) != channels:
        raise ValueError(
            f"mean and std need one number a channel: expected {channels}, found "
            f"{len(config.mean)}"
        )
    if not len(source):
        raise ValueError("the source has no examples")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in [0, {process_count}), found {process_index}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a positive multiple of the {process_count} processes, "
            f"found {batch_size}"
        )


def _validate_boxes(source: Source, with_boxes: bool) -> None:
    if with_boxes and "box" not in source[0]:
        raise ValueError(
            "expected a dataset with boxes, to learn where objects are, found none in "
            f"{source[0]['name']}; fashion_mnist_boxes has some"
        )

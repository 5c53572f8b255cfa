"""This module keeps a small training set on the devices and cuts its crops there.

The host draws what `vgg_jax.data.pipeline.train_batches` would draw and sends these few
numbers in the place of pixels; the crops are the same to the bit. Images that training
enlarges are on the devices at each of its scales, as the host rescales them.
"""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.base import Source
from vgg_jax.data.collate import Decoder, RawBatch, stack
from vgg_jax.data.pipeline import (
    Batch,
    decoding_threads,
    read_ahead,
    report_corrupt,
    train_draws,
    train_order,
)
from vgg_jax.distributed import batch_sharding, replicated
from vgg_jax.memory import GIB

LARGEST = GIB  # bytes on each device, of a set that goes there unasked
# An image's bytes are padded to a multiple of this. The lanes of a TPU are so many; of
# other lengths all images would be copied before each batch.
TILE = 128
CHUNK = 256  # images that a thread decodes one after another


class NotForDevices(ValueError):
    """A training set whose crops cannot be cut on the devices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSet:
    """The images of a source on the devices of a mesh, and its labels on the host.

    Args:
        images: uint8 [scales * N, H * W * channels + padding]: all images at the
            smallest scale, then at the next; a smaller one lies in the upper left
            corner of H x W.
        shape: (H, W, channels) of the largest scale.
        sides: int [scales, 2], the images' height and width at each scale.
        labels: int32 [N].
        weights: float32 [N], 0 for an image that could not be decoded.
        config: the settings of the crops.
        mesh: the devices.
    """

    images: jax.Array
    shape: tuple[int, int, int]
    sides: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    config: DataConfig
    mesh: Mesh

    def train_draws(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Generator[Batch]:
        """Gives the draws of endless batches, for `cut`: this process's rows of each.

        They are those of `vgg_jax.data.pipeline.train_batches` of the same arguments.
        """
        draws = train_draws(self.config, seed)

        def draw(number: int, examples: np.ndarray) -> Batch:
            rows = len(examples)
            crops = draws.crops(number * rows, rows)
            scale = crops.short_side - self.config.scale_min
            places = self.sides[scale] - self.config.crop + 1
            return {
                "label": self.labels[examples],
                "weight": self.weights[examples],
                "row": (scale * len(self.labels) + examples).astype(np.int32),
                "corner": (crops.place * places).astype(np.int32),
                "is_mirrored": crops.is_mirrored,
                **draws.changes(number * rows, rows),
            }

        order = train_order(len(self.labels), seed, batch_size // process_count)
        mine = order.map_with_index(draw)[process_index::process_count][start_step:]
        # More than one thread would be slower: they draw in Python, one at a time.
        return read_ahead(mine, threads=1)

    def cut(self, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Makes the batch of `train_batches` from its draws, which lie on the mesh."""
        draws = dict(draws)
        names = ("row", "corner", "is_mirrored")
        crops = _cut(
            self.images,
            *(draws.pop(name) for name in names),
            shape=self.shape,
            crop=self.config.crop,
            sharding=batch_sharding(self.mesh),
        )
        return {"image": crops, **draws}


@functools.partial(jax.jit, static_argnames=("shape", "crop", "sharding"))
def _cut(
    images: jax.Array,
    row: jax.Array,
    corner: jax.Array,
    is_mirrored: jax.Array,
    *,
    shape: tuple[int, int, int],
    crop: int,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """Cuts crops and mirrors some of them: -> uint8 [N, crop, crop, channels]."""

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (crop, crop, shape[2]))

    chosen = images[row][:, : math.prod(shape)].reshape(-1, *shape)
    crops = jax.vmap(window)(chosen, corner)
    crops = jnp.where(is_mirrored[:, None, None, None], crops[:, :, ::-1], crops)
    return jax.lax.with_sharding_constraint(crops, sharding)


class Coming(contextlib.AbstractContextManager["Coming"]):
    """A set that a thread puts on the devices while `with` lasts.

    Args:
        put: makes the set, until the event that it is given is set.
    """

    def __init__(self, put: Callable[[threading.Event], DeviceSet | None]):
        self._left = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._set = self._thread.submit(put, self._left)

    def is_there(self) -> bool:
        """Returns whether `result` need not wait."""
        return self._set.done()

    def result(self) -> DeviceSet | None:
        """Waits for what `put` gives, or raises."""
        return self._set.result()

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.shutdown()


def put_on_devices(
    source: Source,
    config: DataConfig,
    mesh: Mesh,
    *,
    channels: int,
    on_cpu: bool = False,
    cancelled: threading.Event | None = None,
) -> DeviceSet | None:
    """Puts a training set on all devices of a mesh, if `config.on_device` wants it.

    Args:
        source: the training images.
        config: the settings of the crops.
        mesh: the devices.
        channels: the number of channels of the network's images.
        on_cpu: whether an `on_device` of None wants it on CPU, too, where decoding the
            set first pays in long runs only.
        cancelled: an event after which the set is not wanted any longer.

    Returns:
        The set; None where it stays on the host.

    Raises:
        NotForDevices: `config.on_device` is True, and the images differ in shape, are
            to shrink, are large or do not fit into the memory.
        CorruptImage: unless `config.on_corrupt_image` is "skip".
        CancelledError: the event was set.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    is_wanted = config.on_device
    if is_wanted is None:
        is_wanted = on_cpu or not is_cpu
    if not is_wanted:
        return None
    try:
        return _put(source, config, mesh, channels, cancelled or threading.Event())
    except NotForDevices:
        if config.on_device:
            raise
        return None


def _put(
    source: Source,
    config: DataConfig,
    mesh: Mesh,
    channels: int,
    cancelled: threading.Event,
) -> DeviceSet:
    """Puts a training set on the devices.

    Raises:
        NotForDevices: see `put_on_devices`; or it is large, and nobody asked for it.
        CancelledError: the event was set.
    """
    decoder = Decoder(source, channels, config.max_pixels)
    shape = _first_shape(decoder)
    scales = range(config.scale_min, config.scale_max + 1)
    if min(shape) > scales[0]:
        raise NotForDevices(
            "data.on_device=True is for images that training does not shrink: expected "
            f"a short side of at most scale_min={scales[0]}, got {min(shape)}; use "
            "--config.data.on_device=false"
        )
    sides = [transforms.rescaled_shape(shape, scale) for scale in scales]
    whole = (*sides[-1], channels)
    if sides[-1] != shape and math.prod(sides[-1]) >= transforms.LARGE:
        raise NotForDevices(
            "data.on_device=True is for small images: expected them to grow to fewer "
            f"than {transforms.LARGE:,} pixels at scale_max, got {sides[-1][0]}x"
            f"{sides[-1][1]}, of which the host computes only the crops; use "
            "--config.data.on_device=false"
        )
    length = -(-math.prod(whole) // TILE) * TILE
    size = len(scales) * len(source) * length
    if size > LARGEST and config.on_device is None:
        raise NotForDevices(f"expected at most {LARGEST:,} bytes, got {size:,}")
    try:
        rows = np.zeros((len(scales), len(source), length), np.uint8)
    except MemoryError as error:
        raise NotForDevices(
            f"data.on_device=True: {len(source):,} images at {len(scales)} scales take "
            f"{size / GIB:,.1f} GiB, which this machine has not; use "
            "--config.data.on_device=false, or fewer scales"
        ) from error
    images = rows[..., : math.prod(whole)].reshape(*rows.shape[:2], *whole)

    def fill(start: int) -> RawBatch:
        """Decodes a chunk of examples into `images`, and gives its labels."""
        if cancelled.is_set():
            raise CancelledError
        numbers = range(start, min(start + CHUNK, len(source)))
        decoded = [decoder(index, None) for index in numbers]
        for row in decoded:
            if row.image is None:
                continue
            if row.image.shape[:2] != shape:
                raise NotForDevices(
                    "data.on_device=True is for images of one shape: found "
                    f"{shape} and {row.image.shape[:2]}; use "
                    "--config.data.on_device=false"
                )
            for scaled, scale in zip(images, scales, strict=True):
                image = transforms.rescale(row.image, scale)
                scaled[row.index, : image.shape[0], : image.shape[1]] = image
        return stack(decoded, len(decoded), (*shape, channels))

    def chunks() -> Generator[RawBatch]:
        with ThreadPoolExecutor(max(1, decoding_threads(decoder, config))) as threads:
            yield from threads.map(fill, range(0, len(source), CHUNK))

    labels_and_weights = report_corrupt(chunks(), config, ("label", "weight"))
    labels, weights = map(
        np.concatenate,
        zip(*(batch.values() for batch in labels_and_weights), strict=True),
    )
    return DeviceSet(
        # Every host has read all images, and puts them on its own devices.
        images=jax.make_array_from_process_local_data(
            replicated(mesh), rows.reshape(-1, length)
        ),
        shape=whole,
        sides=np.array(sides),
        labels=labels,
        weights=weights,
        config=config,
        mesh=mesh,
    )


def _first_shape(decoder: Decoder) -> tuple[int, int]:
    """Returns the height and width of the first image that can be decoded.

    Raises:
        NotForDevices: none can.
    """
    for index in range(len(decoder.source)):
        image = decoder(index, None).image
        if image is not None:
            return image.shape[0], image.shape[1]
    raise NotForDevices("expected images, found none that can be decoded")

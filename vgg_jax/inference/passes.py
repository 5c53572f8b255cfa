"""Runs a network over a data set: row i of the result is of example i.

Several hosts share the examples out, the host prepares a batch while the devices
compute the one before, and an image that cannot be decoded has weight 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from tqdm import tqdm

from vgg_jax.config import Config
from vgg_jax.data.pipeline import Batch, eval_batches, whole_image_batches
from vgg_jax.data.sources import Source
from vgg_jax.data.transforms import CropLayout
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.inference.dense import (
    Shape,
    images_per_device,
    padded_shapes,
    smallest_fitting,
)
from vgg_jax.inference.forward import Head, MapHead, Network
from vgg_jax.inference.tiling import run_tiled
from vgg_jax.memory import evaluation_advice, naming_settings
from vgg_jax.models.layers import smallest_size
from vgg_jax.models.measure import summary

# The arrays of a batch that describe its examples.
DESCRIPTIONS = ("label", "weight", "box")

# Multiply-adds for each shape of images, two minutes of two cores: from here on the
# convolutions of oneDNN make good that a program is compiled at each start.
LONG_PASS = 2**43


@dataclasses.dataclass(frozen=True)
class View:
    """What the network is shown of each image.

    Args:
        scale: the short side Q that the image is rescaled to, in pixels.
        layout: where crops of the training size are cut; None shows the whole image.
    """

    scale: int
    layout: CropLayout | None = None

    @property
    def crops(self) -> int:
        """How many pictures of each image the network sees."""
        return 1 if self.layout is None else len(self.layout(0, 0))


class Rows(NamedTuple):
    """Some examples of a source.

    Attributes:
        numbers: int [n], the places of the examples in the source.
        descriptions: labels, weights and boxes, n rows each.
        outputs: what the head gave: a tree of arrays of n rows.
    """

    numbers: np.ndarray
    descriptions: dict[str, np.ndarray]
    outputs: Any


def over_source(
    network: Network,
    head: Head,
    source: Source,
    config: Config,
    view: View,
    *,
    extras: Mapping[str, np.ndarray] | None = None,
    with_boxes: bool = False,
    mesh: Mesh | None = None,
    bar: tqdm | None = None,
    before_batch: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Runs a head over every example of a source, each exactly once.

    Args:
        network: the network.
        head: what is made of the network's layers: an array, or a dictionary of arrays,
            a row an example.
        source: the images.
        config: `data` says how images are decoded and cropped, `evaluation` how many
            pixels the network is given at once and the shapes that images are padded
            to.
        view: what the network sees of each image.
        extras: further arrays that the head names, one row an example of the source.
        with_boxes: whether the examples' boxes are wanted.
        mesh: the devices that each batch is spread over. By default they are those of
            this host, which takes its share of the images; with a mesh of all hosts'
            devices the hosts run each batch together.
        bar: the progress bar, which is moved by the images that are done.
        before_batch: is called before each batch; what it raises ends the pass.

    Returns:
        "label" int32 [N], "weight" float32 [N] (0 for an image that could not be
        decoded), with boxes "box" [N, 4], and the head's arrays: an array alone is
        named "output". Every host has all rows.

    Raises:
        ValueError: settings do not fit one another.
        RuntimeError: the pipeline did not give every example once.
    """
    parts: list[dict[str, np.ndarray]] = []
    for rows in example_rows(
        network,
        head,
        source,
        config,
        view,
        extras=extras,
        with_boxes=with_boxes,
        mesh=mesh,
        bar=bar,
        before_batch=before_batch,
    ):
        outputs = rows.outputs
        outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        parts.append({"index": rows.numbers, **rows.descriptions, **outputs})
    return place_rows(parts, len(source))


def example_rows(
    network: Network,
    head: Head,
    source: Source,
    config: Config,
    view: View,
    *,
    extras: Mapping[str, np.ndarray] | None = None,
    with_boxes: bool = False,
    mesh: Mesh | None = None,
    bar: tqdm | None = None,
    before_batch: Callable[[], object] = lambda: None,
) -> Iterator[Rows]:
    """Runs a head over this host's share of a source; yields a batch's rows at a time.

    The shapes of a head's rows may differ between batches. See `over_source` for the
    arguments and the errors.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    if view.layout is None and len(mesh.local_devices) != mesh.size:
        raise ValueError(
            "expected a mesh of this host's own devices for whole images, whose shapes "
            "differ between hosts; leave mesh out"
        )
    network = network.place(mesh)
    if _takes_long(network, head, source, config, view, mesh):
        network = network.with_onednn()
    shapes = padded_shapes(config.evaluation.bucket_ratios, view.scale)
    previous, given = None, 0
    batches = view_batches(source, config, view, network.channels, mesh, with_boxes)

    def advice() -> Iterator[str]:
        """Yields what makes the batch smaller that was run last."""
        each = given // len(mesh.local_devices)
        yield from evaluation_advice(config, mesh.size, images_per_device=each)

    with naming_settings(f"a batch of images at Q={view.scale}", advice()):
        for batch in batches:
            before_batch()
            given = len(batch["index"])
            known = {
                name: rows[batch["index"]] for name, rows in (extras or {}).items()
            }
            known |= {name: batch[name] for name in DESCRIPTIONS if name in batch}
            head_extras = {name: known[name] for name in head.extras}
            outputs: Any
            if view.layout is None and batch["image"].shape[1:3] not in shapes:
                # One image, longer than every bucket.
                assert isinstance(head, MapHead)
                outputs = run_tiled(network, head, batch["image"][0], head_extras)
            else:
                images = {k: batch[k] for k in ("image", "size") if k in batch}
                inputs = shard_batch(mesh, images | head_extras)
                outputs = network.run(
                    head,
                    inputs.pop("image"),
                    inputs.pop("size", None),
                    inputs,
                )
            # The devices compute this batch while the host takes the last one's result
            # and prepares the next.
            if previous is not None:
                yield _rows_of_examples(*previous, bar)
            previous = batch, outputs
        if previous is not None:
            yield _rows_of_examples(*previous, bar)


def _takes_long(
    network: Network,
    head: Head,
    source: Source,
    config: Config,
    view: View,
    mesh: Mesh,
) -> bool:
    """Returns whether a pass on CPU is so much work that compiling for it pays."""
    if mesh.devices.flat[0].platform != "cpu" or config.onednn is False:
        return False
    layers, side, programs = network.layers, config.data.crop, 1
    if isinstance(head, MapHead):
        layers = head.layers(layers)
    if view.layout is None:
        side = view.scale
        programs = len(padded_shapes(config.evaluation.bucket_ratios, side))
    if side < smallest_size(layers):
        return False  # the pass will say so
    image = summary(layers, side, in_channels=network.channels)
    images = view.crops * len(source) / jax.process_count()
    return image.multiply_adds * images >= LONG_PASS * programs


def images_at_once(
    config: Config, view: View, devices: int, shape: Shape, of_device: int
) -> int:
    """Returns how many images of a view each of so many devices is given at once.

    `shape` is what whole images are padded to; it does not matter to crops. The crops
    of several images are an even number, of which a TPU makes pairs. `of_device` is how
    many images of the set each device is given in all.
    """
    if view.layout is None:
        return images_per_device(config, devices, shape)
    crops = config.evaluation.crops_at_once(devices)
    images = max(1, min(of_device, -(-crops // (devices * view.crops))))
    is_odd = images * view.crops % 2
    return images + is_odd if images > 1 else images


def view_batches(
    source: Source,
    config: Config,
    view: View,
    channels: int,
    mesh: Mesh,
    with_boxes: bool,
) -> Iterator[Batch]:
    """Returns this host's batches of a view; every device gets as many images."""
    crop, devices = config.data.crop, len(mesh.local_devices)
    of_device = -(-len(source) // (devices * jax.process_count()))

    def rows(shape: Shape) -> int:
        return devices * images_at_once(config, view, mesh.size, shape, of_device)

    share: dict[str, Any] = {
        "channels": channels,
        "scale": view.scale,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "with_boxes": with_boxes,
    }
    if view.layout is None:
        shapes = padded_shapes(config.evaluation.bucket_ratios, view.scale)
        bucket = functools.partial(smallest_fitting, shapes)
        return whole_image_batches(
            source, config.data, bucket=bucket, rows=rows, **share
        )
    return eval_batches(
        source,
        config.data,
        crop=crop,
        layout=view.layout,
        batch_size=rows((crop, crop)) * jax.process_count(),
        **share,
    )


def place_rows(
    parts: list[dict[str, np.ndarray]], examples: int
) -> dict[str, np.ndarray]:
    """Puts the rows of all hosts in the order of the source: [N, ...] each.

    Args:
        parts: this host's rows; each part has the numbers of its examples in "index".
        examples: how many examples the source has, N.

    Raises:
        RuntimeError: an example is missing, or has several rows.
    """
    arrays = {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in (parts[0] if parts else ())
    }
    if jax.process_count() > 1:
        arrays = _gather(arrays)
    index = arrays.pop("index", np.zeros(0, np.int32))
    times_seen = np.bincount(index, minlength=examples)
    wrong = np.flatnonzero(times_seen != 1)
    if wrong.size:
        raise RuntimeError(
            "expected every example once from the pipeline, got example "
            f"{wrong[0]} {times_seen[wrong[0]]} times"
        )
    order = np.argsort(index)
    return {name: rows[order] for name, rows in arrays.items()}


def _gather(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the rows of all hosts, one host after the other."""
    counts = process_allgather(np.asarray(len(own["index"]))).ravel()
    most = int(counts.max())

    def gather(rows: np.ndarray) -> np.ndarray:
        padded = np.zeros((most, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        everyone = process_allgather(padded)
        return np.concatenate(
            [part[:n] for part, n in zip(everyone, counts, strict=True)]
        )

    return {name: gather(rows) for name, rows in own.items()}


def _rows_of_examples(batch: Batch, outputs: Any, bar: tqdm | None) -> Rows:
    """Takes the examples of a batch, without the rows that fill it up."""
    is_example = batch["index"] >= 0

    def take(rows: Any) -> np.ndarray:
        return _local_rows(rows)[is_example]

    descriptions = {k: take(batch[k]) for k in DESCRIPTIONS if k in batch}
    numbers = batch["index"][is_example]
    if bar is not None:
        bar.update(min(len(numbers) * jax.process_count(), bar.total - bar.n))
    return Rows(numbers, descriptions, jax.tree.map(take, outputs))


def _local_rows(rows: Any) -> np.ndarray:
    """Returns this host's rows of an array over the devices of one or of all hosts."""
    if not isinstance(rows, jax.Array) or rows.is_fully_addressable:
        return np.asarray(rows)
    if rows.is_fully_replicated:
        return np.asarray(rows.addressable_data(0))
    own = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(own[start]) for start in sorted(own)])

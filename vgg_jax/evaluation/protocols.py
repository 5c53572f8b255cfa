"""Protocols: what the network sees of an image, and what is averaged (section 3.2)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from vgg_jax.config import Config
from vgg_jax.console import did_you_mean, progress_bar
from vgg_jax.data import crops
from vgg_jax.data.pipeline import eval_batches, whole_image_batches
from vgg_jax.data.sources import Source
from vgg_jax.distributed import make_mesh, replicate, shard_batch
from vgg_jax.evaluation.dense import check_averaging, posteriors, tiled_posteriors
from vgg_jax.evaluation.padding import shapes, smallest_fitting
from vgg_jax.evaluation.predictions import Predictions, fuse
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import smallest_size
from vgg_jax.preprocessing import Normalization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What the network sees of an image; the posteriors of all of it are averaged.

    Args:
        description: one line for the user.
        rule: where crops are cut; None for the whole image.
        flip: each of them is also seen mirrored left to right.
        single_scale: by default at `evaluation.center_scale`, not `evaluation.scales`.
        parts: names of protocols whose posteriors are averaged, in place of a rule.
    """

    description: str
    rule: crops.Rule | None = None
    flip: bool = True
    single_scale: bool = False
    parts: tuple[str, ...] = ()


PROTOCOLS = {
    "center": Protocol(
        description="the center crop",
        rule=crops.center,
        flip=False,
        single_scale=True,
    ),
    "tencrop": Protocol(
        description="four corners and the center, mirrored (Krizhevsky et al., 2012)",
        rule=crops.corners_and_center,
        single_scale=True,
    ),
    "dense": Protocol(description="the whole image, mirrored"),
    "multicrop": Protocol(
        description="a regular grid of 5x5 crops, mirrored", rule=crops.grid_5x5
    ),
    "combined": Protocol(
        description="dense and multicrop", parts=("dense", "multicrop")
    ),
}


class Piece(NamedTuple):
    """What is run in one pass over the images: a protocol without parts, one Q."""

    protocol: str
    scale: int


def pieces(protocol: str, scales: Sequence[int]) -> tuple[Piece, ...]:
    """The passes whose posteriors a protocol averages, with equal weights.

    Raises:
        ValueError: an unknown protocol; the message names the nearest.
    """
    names = find_protocol(protocol).parts or (protocol,)
    return tuple(Piece(name, scale) for name in names for scale in scales)


def default_scales(protocol: str, config: Config) -> tuple[int, ...]:
    """The configuration's short sides Q for a protocol.

    Raises:
        ValueError: an unknown protocol; the message names the nearest.
    """
    if find_protocol(protocol).single_scale:
        return (config.evaluation.center_scale,)
    return tuple(config.evaluation.scales)


def check(model: ConvNet, config: Config, protocol: str, scales: Sequence[int]) -> None:
    """That an evaluation can run, before any work.

    Raises:
        ValueError: an unknown protocol or averaging, no scale, the same one twice, or
            one too small for the network; the message names the nearest, or the
            smallest that fits.
    """
    check_averaging(config.evaluation.averaging)
    method = find_protocol(protocol)
    if not scales:
        raise ValueError(f"expected at least one scale for {protocol}, got none")
    if len(set(scales)) < len(scales):
        raise ValueError(
            f"expected different scales, got {', '.join(map(str, scales))}"
        )
    for part in method.parts:
        check(model, config, part, scales)
    if method.parts:
        return
    whole = method.rule is None
    crop = config.data.crop
    smallest = smallest_size(model.layers)
    if not whole and crop < smallest:
        raise ValueError(
            f"data.crop={crop} is too small for {config.model.name}: the smallest that "
            f"fits is {smallest}"
        )
    smallest = smallest if whole else crop
    if min(scales) < smallest:
        needed_by = config.model.name if whole else f"{crop}x{crop} crops"
        raise ValueError(
            f"scale {min(scales)} is too small for {needed_by}: the smallest that fits "
            f"is {smallest}"
        )


def evaluate(
    model: ConvNet,
    source: Source,
    config: Config,
    *,
    protocol: str,
    scales: Sequence[int],
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Predictions:
    """Posteriors of every image of a source, each exactly once, averaged over scales.

    Args:
        model: a classifier of the source's classes.
        source: the images.
        config: `data` says how they are cropped and normalized, `evaluation` the batch
            size and the averaging order.
        protocol: a key of `PROTOCOLS`.
        scales: short sides Q, in pixels; soft-max posteriors are averaged over them.
        mesh: the batch is spread over its "data" axis; by default over all devices of
            this process, which evaluates its share of the images.
        progress: the name of the work in a progress line on stderr; None for none.

    Raises:
        ValueError: as `check`; or a model and a source of different classes.
    """
    check(model, config, protocol, scales)
    classes = len(source.class_names)
    if classes != model.num_classes:
        raise ValueError(
            f"expected a network of {classes} classes, as the data has, got "
            f"{model.num_classes}"
        )
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    graphdef, state = nnx.split(model)
    state = replicate(mesh, state)
    passes = pieces(protocol, scales)
    line = progress_bar(progress, len(source) * len(passes))
    statistics: dict[str, Any] = {
        "mean": tuple(config.data.mean),
        "std": tuple(config.data.std),
        "averaging": config.evaluation.averaging,
    }

    def run(piece: Piece) -> Predictions:
        method = find_protocol(piece.protocol)
        views = 1 if method.rule is None else len(method.rule(0, 0))
        # Images are dealt evenly to the devices.
        per_device = -(-config.evaluation.batch_size // (mesh.size * views))
        share: dict[str, Any] = {
            "channels": model.in_channels,
            "scale": piece.scale,
            "batch_size": per_device * mesh.size * jax.process_count(),
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        buckets = shapes(config.evaluation.bucket_ratios, piece.scale)
        if method.rule is None:
            bucket = functools.partial(smallest_fitting, buckets)
            batches = whole_image_batches(source, config.data, bucket=bucket, **share)
        else:
            batches = eval_batches(
                source, config.data, crop=config.data.crop, rule=method.rule, **share
            )
        rows = _Rows(len(source), classes)
        previous = None
        for batch in batches:
            found: jax.Array | np.ndarray
            if method.rule is None and batch["image"].shape[1:3] not in buckets:
                # One image, longer than every bucket.
                found = tiled_posteriors(model, batch["image"][0], **statistics)[None]
            else:
                inputs = shard_batch(
                    mesh, {k: batch[k] for k in ("image", "size") if k in batch}
                )
                found = _posteriors(
                    state,
                    inputs["image"],
                    inputs.get("size"),
                    graphdef=graphdef,
                    flip=method.flip,
                    views=views,
                    **statistics,
                )
            # The devices compute this batch while the host takes the last one's result
            # and prepares the next.
            if previous is not None:
                line.update(rows.put(*previous))
            previous = batch, found
        if previous is not None:
            line.update(rows.put(*previous))
        return rows.predictions()

    found = fuse([run(piece) for piece in passes])
    line.close()
    return found


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "mean", "std", "averaging", "flip", "views"),
)
def _posteriors(
    state: nnx.State,
    images: jax.Array,
    sizes: jax.Array | None,
    *,
    graphdef: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    averaging: str,
    flip: bool,
    views: int,
) -> jax.Array:
    """[N * views, H, W, C] with pixels 0-255 -> [N, num_classes].

    Compiled once for all scales, protocols and networks that share it; `sizes`, int32
    [N, 2], are the heights and widths of whole images.
    """
    model = nnx.merge(graphdef, state)
    images = Normalization(mean, std)(images)
    found = posteriors(model, images, averaging=averaging, flip=flip, sizes=sizes)
    return found.reshape(-1, views, found.shape[-1]).mean(axis=1)


def find_protocol(protocol: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: an unknown one; the message names the nearest.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}: {did_you_mean(protocol, PROTOCOLS)}"
        )
    return PROTOCOLS[protocol]


class _Rows:
    """Predictions while they are filled in, each example in its own row."""

    def __init__(self, examples: int, classes: int):
        self.posteriors = np.zeros((examples, classes), np.float32)
        self.labels = np.zeros(examples, np.int32)
        self.weights = np.zeros(examples, np.float32)
        self.times_seen = np.zeros(examples, np.int64)

    def put(self, batch: dict[str, np.ndarray], found: jax.Array | np.ndarray) -> int:
        """Place a batch's examples by their "index"; returns how many there were."""
        there = batch["index"] >= 0  # the others fill up the batch
        index = batch["index"][there]
        self.weights[index] = batch["weight"][there]
        self.labels[index] = batch["label"][there]
        self.posteriors[index] = np.asarray(found)[there]
        np.add.at(self.times_seen, index, 1)
        return len(index)

    def predictions(self) -> Predictions:
        """All rows, once each has been put exactly once, by whichever process."""
        if jax.process_count() > 1:
            for name, mine in vars(self).items():
                setattr(self, name, process_allgather(mine).sum(axis=0))
        wrong = np.flatnonzero(self.times_seen != 1)
        if wrong.size:
            raise RuntimeError(
                "expected every example once from the pipeline, got example "
                f"{wrong[0]} {self.times_seen[wrong[0]]} times"
            )
        return Predictions(
            posteriors=self.posteriors, labels=self.labels, weights=self.weights
        )

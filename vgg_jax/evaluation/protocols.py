"""Protocols: what the network sees of an image, and what is averaged (section 3.2)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vgg_jax.config import Config
from vgg_jax.data.pipeline import eval_batches
from vgg_jax.data.sources import Source
from vgg_jax.evaluation.dense import check_averaging, posteriors
from vgg_jax.evaluation.predictions import Predictions, fuse
from vgg_jax.evaluation.progress import ProgressLine
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import smallest_size
from vgg_jax.names import did_you_mean
from vgg_jax.training.sharding import make_mesh, replicate, shard_batch
from vgg_jax.training.steps import normalise


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one rescaled image becomes posteriors.

    Args:
        whole: the network is given the whole image, not its centre crop.
        posteriors: (model, images, averaging=...) -> [N, num_classes], a pure function.
        description: one line for the user.
    """

    whole: bool
    posteriors: Callable[..., jax.Array]
    description: str


PROTOCOLS = {
    "center": Protocol(
        whole=False,
        posteriors=functools.partial(posteriors, flip=False),
        description="the centre crop of the image rescaled to short side Q",
    ),
    "dense": Protocol(
        whole=True,
        posteriors=functools.partial(posteriors, flip=True),
        description="the whole image at short side Q and its mirror image",
    ),
}


def default_scales(protocol: str, config: Config) -> tuple[int, ...]:
    """The configuration's short sides Q for a protocol.

    Raises:
        ValueError: an unknown protocol; the message names the nearest.
    """
    if _find(protocol).whole:
        return tuple(config.evaluation.scales)
    return (config.evaluation.center_scale,)


def check(model: ConvNet, config: Config, protocol: str, scales: Sequence[int]) -> None:
    """That an evaluation can run, before any work.

    Raises:
        ValueError: an unknown protocol or averaging, no scale, or one too small for the
            network; the message names the nearest, or the smallest that fits.
    """
    check_averaging(config.evaluation.averaging)
    whole = _find(protocol).whole
    if not scales:
        raise ValueError(f"expected at least one scale for {protocol}, got none")
    crop = config.data.crop
    smallest = smallest_size(model.layers)
    if not whole and crop < smallest:
        raise ValueError(
            f"data.crop={crop} is too small for {config.model.name}: the smallest that "
            f"fits is {smallest}"
        )
    smallest = smallest if whole else crop
    if min(scales) < smallest:
        needed_by = config.model.name if whole else f"the {crop}x{crop} centre crop"
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
        config: `data` says how they are cropped and normalised, `evaluation` the batch
            size and the averaging order.
        protocol: a key of `PROTOCOLS`.
        scales: short sides Q, in pixels; soft-max posteriors are averaged over them.
        mesh: the batch is spread over its "data" axis; by default over all devices.
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
    mesh = make_mesh() if mesh is None else mesh
    method = _find(protocol)
    graphdef, state = nnx.split(model)
    state = replicate(mesh, state)

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> jax.Array:
        images = normalise(images, config.data.mean, config.data.std)
        return method.posteriors(
            nnx.merge(graphdef, state),
            images,
            averaging=config.evaluation.averaging,
        )

    # Rows are dealt evenly to the devices.
    per_device = -(-config.evaluation.batch_size // mesh.size)
    line = ProgressLine(progress, len(source) * len(scales))

    def at_scale(scale: int) -> Predictions:
        rows = _Rows(len(source), classes)
        previous = None
        for batch in eval_batches(
            source,
            config.data,
            channels=model.in_channels,
            scale=scale,
            crop=None if method.whole else config.data.crop,
            batch_size=per_device * mesh.size,
        ):
            images = shard_batch(mesh, {"image": batch["image"]})["image"]
            found = run(state, images)
            # The devices compute this batch while the host takes the last one's result
            # and prepares the next.
            if previous is not None:
                line.advance(rows.put(*previous))
            previous = batch, found
        if previous is not None:
            line.advance(rows.put(*previous))
        return rows.predictions()

    found = fuse([at_scale(scale) for scale in scales])
    line.close()
    return found


def _find(protocol: str) -> Protocol:
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

    def put(self, batch: dict[str, np.ndarray], found: jax.Array) -> int:
        """Place a batch's examples by their "index"; returns how many there were."""
        there = batch["index"] >= 0  # the others fill up the batch
        index = batch["index"][there]
        weights = batch["weight"][there]
        self.weights[index] = weights
        self.labels[index] = batch["label"][there]
        self.posteriors[index] = np.asarray(found)[there] * (weights > 0)[:, None]
        np.add.at(self.times_seen, index, 1)
        return len(index)

    def predictions(self) -> Predictions:
        """All rows, once each has been put exactly once."""
        wrong = np.flatnonzero(self.times_seen != 1)
        if wrong.size:
            raise RuntimeError(
                "expected every example once from the pipeline, got example "
                f"{wrong[0]} {self.times_seen[wrong[0]]} times"
            )
        return Predictions(
            posteriors=self.posteriors, labels=self.labels, weights=self.weights
        )

"""Descriptors of many images, kept on disk.

`WORKDIR/descriptors/LAYER_qSCALE.npz` holds `digests`, one a file, `values`, their
activations averaged over space and flips, and `inputs`: JSON of what these depend on.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from vgg_jax.config import Config
from vgg_jax.console import progress_bar
from vgg_jax.data.base import Source, Subset
from vgg_jax.data.pipeline import whole_image_batches
from vgg_jax.evaluation.cache import Inputs, network_inputs
from vgg_jax.evaluation.padding import shapes, smallest_fitting
from vgg_jax.features.descriptors import pooled
from vgg_jax.files import load_arrays, save_arrays
from vgg_jax.models import ConvNet

# To be raised when the same files begin to give other values.
VERSION = 1
# Images between two writes, so that a stop loses little.
SAVE_EVERY = 5000


class Collection:
    """Activations of a network at one scale, by the digests of encoded images."""

    def __init__(self, path: Path, inputs: Inputs):
        self._path = path
        self._inputs = inputs
        self._found: dict[bytes, np.ndarray] = {}
        self._load()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._found

    def __getitem__(self, digest: bytes) -> np.ndarray:
        return self._found[digest]

    def update(self, found: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Take in values by digest."""
        self._found.update(found)

    def save(self) -> None:
        """Write all of it, in place of what was there."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(
            self._path,
            {
                "digests": np.array([list(d) for d in self._found], np.uint8),
                "values": np.stack(list(self._found.values())),
                "inputs": np.array(json.dumps(self._inputs)),
            },
        )

    def _load(self) -> None:
        """What the file has, if it is of the same inputs and whole; else nothing."""
        try:
            stored = load_arrays(self._path, ("digests", "values", "inputs"))
            if json.loads(str(stored["inputs"])) == self._inputs:
                digests = map(bytes, stored["digests"])
                self._found = dict(zip(digests, stored["values"], strict=True))
        except FileNotFoundError:
            pass
        except ValueError:
            print(f"{self._path} is damaged and will be written anew", flush=True)


def digest(image: bytes) -> bytes:
    """Of an encoded image: the same for the same bytes."""
    return hashlib.blake2b(image, digest_size=16).digest()


def collect(
    model: ConvNet,
    source: Source,
    config: Config,
    *,
    workdir: Path,
    step: int,
    scales: Sequence[int],
    layer: str,
    progress: str | None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The activations of a source's images at each scale, computed or found in files.

    Args:
        model: with such a layer.
        source: the images.
        config: `data` says how they are normalized, `evaluation` the batch size.
        workdir: the run of the network, where they are kept.
        step: of the network.
        scales: short sides Q, in pixels.
        layer: whose activations.
        progress: the name of the work in a progress line on stderr; None for none.

    Returns:
        float32 [n, D] for each scale, and the labels, int [n]; images that could not be
        decoded, where `config.data.on_corrupt_image` leaves them out, are not in them.

    Raises:
        ValueError: no image could be decoded.
    """
    inputs = {
        "version": VERSION,
        **network_inputs(model, step),
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }
    examples = [source[i] for i in range(len(source))]
    digests = [digest(example["image"]) for example in examples]
    labels = np.array([example["label"] for example in examples])
    del examples
    line = progress_bar(progress, len(source) * len(scales))
    collections = []
    for scale in scales:
        kept = Collection(workdir / "descriptors" / f"{layer}_q{scale}.npz", inputs)
        missing = np.array([i for i, d in enumerate(digests) if d not in kept], int)
        line.update(len(source) - len(missing))
        unsaved = 0
        for index, values in _compute(model, source, config, missing, scale, layer):
            kept.update((digests[i], v) for i, v in zip(index, values, strict=True))
            line.update(len(index))
            unsaved += len(index)
            if unsaved >= SAVE_EVERY:
                kept.save()
                unsaved = 0
        if unsaved:
            kept.save()
        collections.append(kept)
    line.close()
    there = [i for i, d in enumerate(digests) if all(d in kept for kept in collections)]
    if not there:
        raise ValueError(f"none of {len(source)} pictures could be decoded")
    found = [np.stack([kept[digests[i]] for i in there]) for kept in collections]
    return found, labels[there]


def _compute(
    model: ConvNet,
    source: Source,
    config: Config,
    index: np.ndarray,
    scale: int,
    layer: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers, activations) of the examples `index` that can be decoded, batchwise."""
    if not len(index):
        return
    graphdef, state = nnx.split(model)
    buckets = shapes(config.evaluation.bucket_ratios, scale)

    def bucket(height: int, width: int) -> tuple[int, int]:
        return smallest_fitting(buckets, height, width) or (height, width)

    for batch in whole_image_batches(
        Subset(source, index),
        config.data,
        channels=model.in_channels,
        scale=scale,
        bucket=bucket,
        batch_size=config.evaluation.batch_size,
    ):
        values = pooled(
            state,
            batch["image"],
            batch["size"],
            graphdef=graphdef,
            layer=layer,
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
        )
        decoded = batch["weight"] > 0
        yield index[batch["index"][decoded]], np.asarray(values)[decoded]

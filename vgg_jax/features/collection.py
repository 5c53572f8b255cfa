"""Descriptors of many images, kept on disk.

`WORKDIR/descriptors/LAYER_qSCALE.npz` holds `digests`, one a file, `values`, their
activations averaged over space and flips, and `inputs`: JSON of what these depend on.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vgg_jax import distributed
from vgg_jax.config import Config
from vgg_jax.console import progress_bar
from vgg_jax.data.base import Source, Subset
from vgg_jax.data.whitening import preprocessing_of
from vgg_jax.evaluation.cache import Inputs, network_inputs
from vgg_jax.files import load_arrays, save_arrays
from vgg_jax.inference.forward import Network, Pooled
from vgg_jax.inference.passes import View, over_source
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
        self._values: dict[bytes, np.ndarray] = {}
        self._load()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._values

    def __getitem__(self, digest: bytes) -> np.ndarray:
        return self._values[digest]

    def update(self, values: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Take in values by digest."""
        self._values.update(values)

    def save(self) -> None:
        """Write all of it, in place of what was there."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(
            self._path,
            {
                "digests": np.array([list(d) for d in self._values], np.uint8),
                "values": np.stack(list(self._values.values())),
                "inputs": np.array(json.dumps(self._inputs)),
            },
        )

    def _load(self) -> None:
        """What the file has, if it is of the same inputs and whole; else nothing."""
        try:
            stored = load_arrays(self._path, ("digests", "values", "inputs"))
            if json.loads(str(stored["inputs"])) == self._inputs:
                digests = map(bytes, stored["digests"])
                self._values = dict(zip(digests, stored["values"], strict=True))
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
    digests, labels = [], []
    for i in range(len(source)):
        example = source[i]
        digests.append(digest(example["image"]))
        labels.append(example["label"])
    network = Network.from_model(model, preprocessing_of(config.data))
    collections = []
    with progress_bar(progress, len(source) * len(scales)) as bar:
        for scale in scales:
            path = workdir / "descriptors" / f"{layer}_q{scale}.npz"
            kept = Collection(path, inputs)
            missing = np.array([i for i, d in enumerate(digests) if d not in kept], int)
            bar.update(len(source) - len(missing))
            for start in range(0, len(missing), SAVE_EVERY):
                numbers = missing[start : start + SAVE_EVERY]
                rows = over_source(
                    network,
                    Pooled(layer=layer),
                    Subset(source, numbers),
                    config,
                    View(scale),
                    bar=bar,
                )
                is_decoded = rows["weight"] > 0
                values = rows["output"][is_decoded]
                names = [digests[i] for i in numbers[is_decoded]]
                kept.update(zip(names, values, strict=True))
                if names and distributed.is_first():
                    kept.save()
            collections.append(kept)
    whole = [i for i, d in enumerate(digests) if all(d in kept for kept in collections)]
    if not whole:
        raise ValueError(f"none of {len(source)} pictures could be decoded")
    activations = [np.stack([kept[digests[i]] for i in whole]) for kept in collections]
    return activations, np.array(labels)[whole]

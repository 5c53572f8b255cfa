"""Computes the descriptors of many images and keeps them on disk.

`WORKDIR/descriptors/LAYER_qSCALE.npz` holds `digests`, one an encoded image, `values`,
the activations averaged over space and flips, and `inputs`: JSON of what these depend
on.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
from etils.epath import Path

from vgg_jax import distributed
from vgg_jax.config import Config
from vgg_jax.console import progress_bar
from vgg_jax.data.base import CorruptImage, Source, Subset
from vgg_jax.data.zca import preprocessing_of, whitening_digest
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
    """A file of a network's activations at one scale, by digests of encoded images.

    Args:
        path: the file. What it holds is used if it is whole and of the same inputs.
        inputs: what the activations depend on beside the images.
    """

    def __init__(self, path: Path, inputs: Inputs):
        self._path = path
        self._inputs = inputs
        self._activations: dict[bytes, np.ndarray] = {}
        self._load()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._activations

    def __getitem__(self, digest: bytes) -> np.ndarray:
        return self._activations[digest]

    def update(self, activations: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Adds activations, each with the digest of its image; `save` writes them."""
        self._activations.update(activations)

    def save(self) -> None:
        """Writes everything, in place of the file that was there before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(
            self._path,
            {
                "digests": np.array([list(d) for d in self._activations], np.uint8),
                "values": np.stack(list(self._activations.values())),
                "inputs": np.array(json.dumps(self._inputs)),
            },
        )

    def _load(self) -> None:
        """Reads the file, if it is there, whole, and of the same inputs."""
        try:
            stored = load_arrays(self._path, ("digests", "values", "inputs"))
            if json.loads(str(stored["inputs"])) == self._inputs:
                values = stored["values"]
                if values.ndim != 2 or not np.isfinite(values).all():
                    raise ValueError("expected a finite descriptor for each image")
                digests = map(bytes, stored["digests"])
                self._activations = dict(zip(digests, values, strict=True))
        except FileNotFoundError:
            pass
        except ValueError:
            print(f"{self._path} is damaged and will be written anew", flush=True)


def image_digest(image: bytes) -> bytes:
    """Returns a digest of an encoded image, the same for the same bytes."""
    return hashlib.blake2b(image, digest_size=16).digest()


def _missing_on_any(is_kept: Sequence[bool]) -> np.ndarray:
    """Returns the numbers of the images that some host has not kept.

    A host that left out what another one computes would let that one wait for ever.
    """
    missing = [i for i, kept in enumerate(is_kept) if not kept]
    return np.array(sorted(set().union(*distributed.gather(missing))), int)


def collect_activations(
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
    """Returns the activations of a source's images at each scale, and their labels.

    What the workdir keeps of an earlier call is not computed again.

    Args:
        model: a network with such a layer.
        source: the images.
        config: `data` says how images are normalized, `evaluation` the batch size.
        workdir: the folder of the network's run, where activations are kept.
        step: the training step that the network's weights are of.
        scales: short sides Q, in pixels.
        layer: the name of the layer whose activations are taken.
        progress: the name of the work in a progress line on stderr; None for none.

    Returns:
        float32 [n, D] for each scale, and the labels, int [n]; images that could not be
        decoded, where `config.data.on_corrupt_image` leaves them out, are in neither.

    Raises:
        ValueError: no image could be decoded, or a descriptor is not finite.
    """
    inputs = {
        "version": VERSION,
        **network_inputs(model, step),
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "whitening": whitening_digest(config.data),
    }
    digests, labels = [], []
    for i in range(len(source)):
        try:
            example = source[i]
        except CorruptImage:  # `over_source` reports it; no image has this digest
            digests.append(b"")
            labels.append(0)
            continue
        digests.append(image_digest(example["image"]))
        labels.append(example["label"])
    network = Network.from_model(model, preprocessing_of(config.data))
    collections = []
    with progress_bar(progress, len(source) * len(scales)) as bar:
        for scale in scales:
            path = workdir / "descriptors" / f"{layer}_q{scale}.npz"
            collection = Collection(path, inputs)
            missing = _missing_on_any([digest in collection for digest in digests])
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
                decoded = [digests[i] for i in numbers[is_decoded]]
                values = rows["output"][is_decoded]
                is_finite = np.isfinite(values).all(axis=1)
                if not is_finite.all():
                    first = source[int(numbers[is_decoded][~is_finite][0])]
                    raise ValueError(
                        f"the descriptor of {first['name']} has values that are not "
                        "finite numbers; the weights of the network are damaged or its "
                        "training diverged: take another checkpoint"
                    )
                collection.update(zip(decoded, values, strict=True))
                if decoded and distributed.is_first():
                    collection.save()
            collections.append(collection)
    complete = [
        i
        for i, digest in enumerate(digests)
        if all(digest in collection for collection in collections)
    ]
    if not complete:
        raise ValueError(f"none of {len(source)} pictures could be decoded")
    activations = [
        np.stack([collection[digests[i]] for i in complete])
        for collection in collections
    ]
    return activations, np.array(labels)[complete]

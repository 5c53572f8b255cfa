"""This module loads what LPIPS and DISTS are made of: a network and a few vectors."""

import os
from pathlib import Path

import numpy as np

from vgg_jax.models import ConvNet
from vgg_jax.weights.load import abstract_network, load_weights

LINEAGE = "torchvision"  # of the weights on which both were trained
ARRAYS = Path(__file__).parent / "weights"


def load_trunk(path_or_name: str | os.PathLike[str], source: str | None) -> ConvNet:
    """Loads VGG-16 without its classifier, with the weights of torchvision.

    Args:
        path_or_name: a file, or the name of published weights.
        source: asserts whose weights they are, where nothing else tells; or None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights of another network, or of another lineage.
    """
    model = abstract_network("vgg16", num_classes=None)
    loaded = load_weights(model, path_or_name, source)
    if loaded.lineage != LINEAGE:
        raise ValueError(
            f"{path_or_name}: expected weights of {LINEAGE!r}, on which this distance "
            f"was trained, got {loaded.lineage or 'unknown ones'!r} "
            f"({loaded.evidence}), with which it would be another one; take "
            "'torchvision/vgg16', or give "
            f"source={LINEAGE!r} if they were trained further from those"
        )
    return model


def read_arrays(name: str) -> dict[str, np.ndarray]:
    """Reads the published vectors that come with this library, by their names."""
    with np.load(ARRAYS / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)

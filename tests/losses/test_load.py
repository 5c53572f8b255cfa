"""LPIPS, DISTS and extractors from files of VGG-16, of several lineages."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vgg_jax.losses import Dists, FeatureExtractor, Lpips
from vgg_jax.weights import save_weights
from vgg_jax.weights.lineage import LINEAGES, OXFORD, TORCHVISION
from vgg_jax.weights.load import abstract_network

CHANNELS = {
    "relu1_2": 64,
    "relu2_2": 128,
    "relu3_3": 256,
    "relu4_3": 512,
    "relu5_3": 512,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-16s of zeros but for the filter that tells whose they are."""
    folder = tmp_path_factory.mktemp("weights")
    model = abstract_network("vgg16", num_classes=None)
    for row in model.layers:
        for name in ("kernel", "bias"):
            variable = getattr(getattr(model, row.name, None), name, None)
            if variable is not None:
                variable.set_value(jnp.zeros(variable.get_value().shape))
    for lineage in ("unknown", "oxford", "torchvision"):
        kernel, bias = np.zeros((3, 3, 3, 64), np.float32), np.zeros(64, np.float32)
        if lineage in LINEAGES:
            for place, value in LINEAGES[lineage].first_filter.items():
                kernel[*place, 0] = value
            bias[: len(LINEAGES[lineage].bias)] = LINEAGES[lineage].bias
        model.conv1_1.kernel.set_value(jnp.asarray(kernel))
        model.conv1_1.bias.set_value(jnp.asarray(bias))
        save_weights(model, folder / f"{lineage}.safetensors", names="torchvision")
    return folder


def test_the_published_vectors_come_with_the_library(folder: Path) -> None:
    lpips = Lpips.load(folder / "torchvision.safetensors")
    dists = Dists.load(folder / "torchvision.safetensors")
    assert {name: head.shape[0] for name, head in lpips.heads.items()} == CHANNELS
    assert all((head >= 0).all() for head in lpips.heads.values())
    channels = {"image": 3, **CHANNELS}
    for weights in (dists.alpha, dists.beta):
        assert {name: w.shape[0] for name, w in weights.items()} == channels
        assert all((w >= 0).all() for w in weights.values())
    for loaded in (lpips, dists):
        kernel = loaded.trunk.params["conv1_1"]["kernel"]
        assert kernel[0, 0, 0, 0] == np.float32(-0.5537)
        assert list(loaded.trunk.params)[-1] == "conv5_3"


@pytest.mark.parametrize("distance", [Lpips, Dists])
def test_weights_of_another_lineage_are_refused(
    distance: type[Lpips] | type[Dists], folder: Path
) -> None:
    with pytest.raises(ValueError, match=r"expected weights of 'torchvision'.*oxford"):
        distance.load(folder / "oxford.safetensors")
    with pytest.raises(ValueError, match=r"expected weights of 'torchvision'.*oxford"):
        distance.load(folder / "oxford.safetensors", source="torchvision")
    with pytest.raises(ValueError, match="got 'unknown ones'"):
        distance.load(folder / "unknown.safetensors")
    distance.load(folder / "unknown.safetensors", source="torchvision")


def test_heads_of_another_file(folder: Path) -> None:
    heads = {
        f"lin{i}.model.1.weight": np.full((1, channels, 1, 1), i, np.float32)
        for i, channels in enumerate(CHANNELS.values())
    }
    save_file(heads, folder / "heads.safetensors")
    lpips = Lpips.load(
        folder / "torchvision.safetensors", heads=folder / "heads.safetensors"
    )
    for i, (name, channels) in enumerate(CHANNELS.items()):
        np.testing.assert_array_equal(lpips.heads[name], np.full(channels, i))
    del heads["lin3.model.1.weight"]
    save_file(heads, folder / "heads.safetensors")
    with pytest.raises(ValueError, match=r"missing are lin3\.model\.1; the file has"):
        Lpips.load(
            folder / "torchvision.safetensors", heads=folder / "heads.safetensors"
        )


def test_an_extractor_knows_network_and_normalization_by_the_file(
    folder: Path,
) -> None:
    for lineage, want in (("torchvision", TORCHVISION), ("oxford", OXFORD)):
        extractor = FeatureExtractor.load(
            folder / f"{lineage}.safetensors", ("conv3_3",), dtype="bfloat16"
        )
        assert extractor.normalization == want
        assert list(extractor.params)[-1] == "conv3_3"
        maps = extractor(np.zeros((1, 8, 8, 3), np.float32), input_range=(0, 1))
        assert maps["conv3_3"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="nothing tells what these weights expect"):
        FeatureExtractor.load(folder / "unknown.safetensors", ("conv3_3",))
    asserted = FeatureExtractor.load(
        folder / "unknown.safetensors", ("conv3_3",), source="oxford"
    )
    assert asserted.normalization == OXFORD
    save_file({"fc.weight": np.zeros((2, 2), np.float32)}, folder / "other.safetensors")
    with pytest.raises(ValueError, match="expected the weights of a network of the pa"):
        FeatureExtractor.load(folder / "other.safetensors", ("conv3_3",))

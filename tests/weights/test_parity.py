"""Small files that other libraries wrote give the answers that those libraries gave.

`python -m tests.parity.small` wrote them; `make parity` compares whole networks.
"""

import pathlib
import zipfile

import numpy as np
import pytest

from tests.parity.ours import answer, relative_error
from tests.weights.networks import network
from vgg_jax.weights import load_weights

ARCHIVE = pathlib.Path(__file__).parent / "files" / "parity.zip"
OPTIONS = {"width": 1 / 32, "fc_features": 512, "fc_kernel": 2}
RESULTS = ("logits", "image_gradient", "kernel_gradient")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("torchvision_vgg11.pth", "vgg11"),
        ("torchvision_vgg11_bn.pth", "vgg11_bn"),
        ("timm_vgg11.safetensors", "vgg11"),
        ("keras_vgg11.weights.h5", "vgg11"),
    ],
)
def test_a_file_gives_the_maps_logits_and_gradients_of_who_wrote_it(
    tmp_path: pathlib.Path, file: str, name: str
) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        path = archive.extract(file, tmp_path)
        with archive.open(f"{file.partition('.')[0]}.npz") as answers:
            theirs = dict(np.load(answers))
    model = network(name, **OPTIONS)
    channels = "RGB" if file.startswith("keras") else None
    loaded = load_weights(model, path, channels=channels)
    assert not loaded.kept and not loaded.unused
    inputs = theirs.pop("images"), theirs.pop("score_weights")
    maps = sorted(theirs.keys() - set(RESULTS))
    assert {"pool1", "pool5", "relu7"} <= set(maps)
    ours = answer(model, *inputs, maps)
    found = ours.maps | {result: getattr(ours, result) for result in RESULTS}
    found["image_gradient"] = found["image_gradient"][:, ::4, ::4]
    errors = {key: relative_error(found[key], theirs[key]) for key in theirs}
    assert max(errors.values()) < 1e-5, errors

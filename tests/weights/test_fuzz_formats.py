"""Damaged files of Keras, Caffe and MatConvNet are read or refused by one line."""

import functools
import io
import pathlib
import zipfile

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings

from tests.torture.isolated import measure
from tests.weights.files.values import Layers, vgg11
from tests.weights.test_caffe_file import of_today as caffe_of_today
from tests.weights.test_caffe_file import of_v0, of_v1
from tests.weights.test_fuzz import MEMORY, damage, read_or_refuse
from tests.weights.test_keras_file import ARCHIVE
from tests.weights.test_matconvnet_file import of_old, of_today


def of_keras(name: str, layers: Layers) -> bytes:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return archive.read(name)


def of_matconvnet(is_compressed: bool, layers: Layers) -> bytes:
    file = io.BytesIO()
    variables = of_today(layers) if is_compressed else of_old(layers)
    if not is_compressed:
        variables["normalization"] = {"averageImage": np.ones((2, 2, 3), np.float32)}
    scipy.io.savemat(file, variables, do_compression=is_compressed)
    return file.getvalue()


SMALL = {
    **{
        f"{name}.h5": functools.partial(of_keras, f"{name}.h5")
        for name in ("keras2", "keras2_whole_nested", "keras_hub_model.weights")
    },
    "keras3_bn.keras": functools.partial(of_keras, "keras3_bn.keras"),
    "v0.caffemodel": of_v0,
    "v1.caffemodel": of_v1,
    "today.caffemodel": caffe_of_today,
    "old.mat": functools.partial(of_matconvnet, False),
    "compressed.mat": functools.partial(of_matconvnet, True),
}


@functools.cache
def whole_file(name: str) -> bytes:
    return SMALL[name](vgg11(side=None))


@pytest.mark.parametrize("name", SMALL)
def test_damaged_files_are_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(whole_file(name))
    assert read_or_refuse(path) is None

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(whole_file(name)))
    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_or_refuse(path)

    result, effort = measure(read)
    assert result is None, result
    assert effort.peak_bytes < MEMORY


@pytest.mark.parametrize("name", SMALL)
def test_cut_files_are_refused(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    data = whole_file(name)
    for end in np.linspace(520, len(data) - 1, 12, dtype=int):
        path.write_bytes(data[:end])
        if read_or_refuse(path) is None:
            # Between two layers of Caffe, or where only names of classes are missing.
            assert not name.endswith(".h5")

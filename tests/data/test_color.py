import dataclasses
import json

import numpy as np
import pytest

from vgg_jax.config import DataConfig
from vgg_jax.data import color as color

CONFIG = DataConfig(dataset="folder", color_shift=0.1)


def test_the_axes_of_imagenet_are_orthogonal_and_in_gray_levels():
    axes = color.load_axes(CONFIG)
    directions = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=2e-4)
    # The first is nearly gray: 119 levels along it, 68 in each channel.
    assert np.linalg.norm(axes[0]) == pytest.approx(118.9, abs=0.1)
    np.testing.assert_allclose(np.abs(axes[0]), 68, atol=1.5)


def test_computed_axes_are_read_from_beside_the_data(tmp_path):
    config = dataclasses.replace(
        CONFIG, data_dir=str(tmp_path), color_pca="computed", mean=(0.0,), std=(1.0,)
    )
    with pytest.raises(FileNotFoundError, match=r"python -m vgg_jax\.tools\.color_pca"):
        color.load_axes(config)
    path = color.computed_path(config)
    assert path.parent == tmp_path
    path.write_text(json.dumps({"axes": [[25.0]]}))
    np.testing.assert_array_equal(color.load_axes(config), [[25.0]])
    with pytest.raises(ValueError, match=r"expected 3 axes .*, found \[\[25"):
        color.load_axes(dataclasses.replace(config, mean=(0.0,) * 3))

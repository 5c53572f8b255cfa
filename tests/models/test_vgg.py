"""Table 1 of arXiv:1409.1556: parameters to the unit, values against the reference."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests import reference
from tests.models.drawn import (
    answers,
    assert_relus_clip,
    assert_same,
    dropout_rates,
    images,
    network,
    shapes,
)
from vgg_jax import create_model

# Name, letter, the reference's settings, parameters with 1000 classes.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vgg11": ("A", {}, 132_863_336),
    "vgg11_lrn": ("A", {"lrn": "krizhevsky"}, 132_863_336),
    "vgg13": ("B", {}, 133_047_848),
    "vgg16_c": ("C", {}, 133_638_952),
    "vgg16": ("D", {}, 138_357_544),
    "vgg19": ("E", {}, 143_667_240),
    "vgg11_bn": ("A", {"batch_norm": True}, 132_868_840),
    "vgg13_bn": ("B", {"batch_norm": True}, 133_053_736),
    "vgg16_bn": ("D", {"batch_norm": True}, 138_365_992),
    "vgg19_bn": ("E", {"batch_norm": True}, 143_678_248),
}

# Kernels, HWIO.
HEAD = {"fc6": (7, 7, 512, 4096), "fc7": (1, 1, 4096, 4096), "fc8": (1, 1, 4096, 1000)}
KERNELS: dict[str, dict[str, tuple[int, ...]]] = {
    "A": {
        "conv1_1": (3, 3, 3, 64),
        "conv2_1": (3, 3, 64, 128),
        "conv3_1": (3, 3, 128, 256),
        "conv3_2": (3, 3, 256, 256),
        "conv4_1": (3, 3, 256, 512),
        "conv4_2": (3, 3, 512, 512),
        "conv5_1": (3, 3, 512, 512),
        "conv5_2": (3, 3, 512, 512),
    },
    "B": {
        "conv1_1": (3, 3, 3, 64),
        "conv1_2": (3, 3, 64, 64),
        "conv2_1": (3, 3, 64, 128),
        "conv2_2": (3, 3, 128, 128),
        "conv3_1": (3, 3, 128, 256),
        "conv3_2": (3, 3, 256, 256),
        "conv4_1": (3, 3, 256, 512),
        "conv4_2": (3, 3, 512, 512),
        "conv5_1": (3, 3, 512, 512),
        "conv5_2": (3, 3, 512, 512),
    },
    "C": {
        "conv1_1": (3, 3, 3, 64),
        "conv1_2": (3, 3, 64, 64),
        "conv2_1": (3, 3, 64, 128),
        "conv2_2": (3, 3, 128, 128),
        "conv3_1": (3, 3, 128, 256),
        "conv3_2": (3, 3, 256, 256),
        "conv3_3": (1, 1, 256, 256),
        "conv4_1": (3, 3, 256, 512),
        "conv4_2": (3, 3, 512, 512),
        "conv4_3": (1, 1, 512, 512),
        "conv5_1": (3, 3, 512, 512),
        "conv5_2": (3, 3, 512, 512),
        "conv5_3": (1, 1, 512, 512),
    },
    "D": {
        "conv1_1": (3, 3, 3, 64),
        "conv1_2": (3, 3, 64, 64),
        "conv2_1": (3, 3, 64, 128),
        "conv2_2": (3, 3, 128, 128),
        "conv3_1": (3, 3, 128, 256),
        "conv3_2": (3, 3, 256, 256),
        "conv3_3": (3, 3, 256, 256),
        "conv4_1": (3, 3, 256, 512),
        "conv4_2": (3, 3, 512, 512),
        "conv4_3": (3, 3, 512, 512),
        "conv5_1": (3, 3, 512, 512),
        "conv5_2": (3, 3, 512, 512),
        "conv5_3": (3, 3, 512, 512),
    },
    "E": {
        "conv1_1": (3, 3, 3, 64),
        "conv1_2": (3, 3, 64, 64),
        "conv2_1": (3, 3, 64, 128),
        "conv2_2": (3, 3, 128, 128),
        "conv3_1": (3, 3, 128, 256),
        "conv3_2": (3, 3, 256, 256),
        "conv3_3": (3, 3, 256, 256),
        "conv3_4": (3, 3, 256, 256),
        "conv4_1": (3, 3, 256, 512),
        "conv4_2": (3, 3, 512, 512),
        "conv4_3": (3, 3, 512, 512),
        "conv4_4": (3, 3, 512, 512),
        "conv5_1": (3, 3, 512, 512),
        "conv5_2": (3, 3, 512, 512),
        "conv5_3": (3, 3, 512, 512),
        "conv5_4": (3, 3, 512, 512),
    },
}


def check(
    name: str,
    x: np.ndarray,
    *,
    dtype: Any = np.float64,
    num_classes: int | None = 7,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Holds a network against the reference; returns its answers."""
    letter, known, _ = NETWORKS[name]
    graphdef, params = network(
        name, in_channels=x.shape[-1], num_classes=num_classes, **options
    )
    want = reference.vgg(
        letter, params, x.astype(dtype), **known | dict(settings or {})
    )
    assert_relus_clip(want)
    got = answers(graphdef, params, x)
    if num_classes is None:
        want["logits"] = want["pool5"]
    assert_same(got, want)
    return got


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_dropout(name: str) -> None:
    letter, settings, count = NETWORKS[name]
    want: dict[str, dict[str, tuple[int, ...]]] = {}
    for module, kernel in (KERNELS[letter] | HEAD).items():
        want[module] = {"kernel": kernel, "bias": kernel[-1:]}
        if "batch_norm" in settings and module.startswith("conv"):
            want[module.replace("conv", "bn")] = dict.fromkeys(
                ("scale", "bias", "mean", "var"), kernel[-1:]
            )
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == count
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert shapes(model) == want
    assert dropout_rates(model) == {"drop6": 0.5, "drop7": 0.5}


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"num_classes": 10}, {"fc8": (1, 1, 4096, 10)}),
        ({"in_channels": 1}, {"conv1_1": (3, 3, 1, 64)}),
        (
            {"fc_kernel": 1, "fc_features": 512},
            {
                "fc6": (1, 1, 512, 512),
                "fc7": (1, 1, 512, 512),
                "fc8": (1, 1, 512, 1000),
            },
        ),
        ({"head": "global_pool"}, {"fc6": None, "fc7": None, "fc8": (1, 1, 512, 1000)}),
        ({"num_classes": None}, {"fc6": None, "fc7": None, "fc8": None}),
        (
            {"width": 0.004},  # 64 channels are 0.26, so one; 512 are 2.05, so two
            {
                "conv1_1": (3, 3, 3, 1),
                "conv2_1": (3, 3, 1, 1),
                "conv3_1": (3, 3, 1, 1),
                "conv3_2": (3, 3, 1, 1),
                "conv4_1": (3, 3, 1, 2),
                "conv4_2": (3, 3, 2, 2),
                "conv5_1": (3, 3, 2, 2),
                "conv5_2": (3, 3, 2, 2),
                "fc6": (7, 7, 2, 16),
                "fc7": (1, 1, 16, 16),
                "fc8": (1, 1, 16, 1000),
            },
        ),
    ],
)
def test_options_change_these_kernels_only(
    options: dict[str, Any], changed: dict[str, Any]
) -> None:
    want = KERNELS["A"] | HEAD | changed
    model = nnx.eval_shape(lambda: create_model("vgg11", rngs=nnx.Rngs(0), **options))
    assert {module: leaves["kernel"] for module, leaves in shapes(model).items()} == {
        module: kernel for module, kernel in want.items() if kernel is not None
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_equals_the_reference(name: str) -> None:
    # A-LRN sees pixels of the paper's range: its constants are made for them.
    deviation = 60.0 if name == "vgg11_lrn" else 1.0
    x = images(2, 96, 96, 3, deviation=deviation)
    got = check(name, x, width=1 / 8, fc_kernel=3, settings={"fc_kernel": 3})
    assert got["score_map"].shape == (2, 1, 1, 7)
    np.testing.assert_array_equal(got["score_map"][:, 0, 0], got["logits"])


def test_full_width_vgg16_equals_the_reference() -> None:
    got = check("vgg16", images(1, 224, 224, 3), num_classes=1000, dtype=np.float32)
    pools = [got[f"pool{stage}"].shape[1:3] for stage in range(1, 6)]
    assert pools == [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]
    assert got["relu5_3"].shape == (1, 14, 14, 512)
    assert got["relu7"].shape == (1, 1, 1, 4096)
    assert got["score_map"].shape == (1, 1, 1, 1000)
    np.testing.assert_array_equal(got["score_map"][:, 0, 0], got["logits"])


def test_caffe_constants_of_a_lrn() -> None:
    x = images(2, 32, 32, 3, deviation=60)
    settings = {"lrn": "caffe", "fc_kernel": 1}
    check("vgg11_lrn", x, settings=settings, lrn="caffe", fc_kernel=1, width=1 / 8)


@pytest.mark.parametrize(
    ("name", "shape", "cells", "options"),
    [
        ("vgg16_c", (1, 64, 64, 1), (1, 1), {"fc_kernel": 2, "fc_features": 400}),
        ("vgg13", (2, 28, 28, 1), (1, 1), {"fc_kernel": 1, "ceil_mode": True}),
        ("vgg16", (1, 101, 67, 3), (3, 2), {"head": "global_pool"}),
        (
            "vgg11_bn",
            (2, 28, 47, 1),
            (1, 2),
            {"head": "global_pool", "ceil_mode": True},
        ),
    ],
)
def test_small_images_and_both_heads(
    name: str, shape: tuple[int, ...], cells: tuple[int, int], options: dict[str, Any]
) -> None:
    settings = {k: v for k, v in options.items() if k in ("head", "fc_kernel")}
    settings["ceil"] = options.get("ceil_mode", False)
    got = check(name, images(*shape), settings=settings, width=1 / 4, **options)
    assert got["score_map"].shape[1:3] == cells


@pytest.mark.parametrize(
    ("size", "cells"),
    [((384, 384), (6, 6)), ((300, 224), (3, 1))],
)
def test_dense_score_map_of_larger_images(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    got = check("vgg16", images(1, *size, 3), width=1 / 8)
    assert got["score_map"].shape == (1, *cells, 7)
    np.testing.assert_allclose(
        got["logits"], got["score_map"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-5
    )


def test_a_cell_sees_its_receptive_field_and_nothing_else() -> None:
    """Cell i of vgg16 sees 404 pixels from 32 i - 90 on: in a crop it is the same."""
    graphdef, params = network("vgg16", width=1 / 16, num_classes=7)
    score_map = jax.jit(lambda p, x: nnx.merge(graphdef, p).score_map(x))
    x = images(1, 544, 544, 3)
    whole = np.asarray(score_map(params, x))
    assert whole.shape == (1, 11, 11, 7)
    crop = np.asarray(score_map(params, x[:, 64:480, 32:448]))
    tolerance = {"rtol": 0, "atol": 1e-5 * np.abs(whole).max()}
    np.testing.assert_allclose(crop[0, 3, 3], whole[0, 5, 4], **tolerance)
    assert np.abs(crop[0, 2, 3] - whole[0, 4, 4]).max() > 100 * tolerance["atol"]
    first, last = 32 * 5 - 90, 32 * 5 - 90 + 403
    for row, seen in (
        (first, True),
        (first - 1, False),
        (last, True),
        (last + 1, False),
    ):
        changed = x.copy()
        changed[:, row] += 1000
        moved = np.abs(np.asarray(score_map(params, changed)) - whole)[0, 5, 4].max()
        assert (moved > tolerance["atol"]) == seen, row


def test_a_backbone_ends_in_pool5() -> None:
    x = images(1, 65, 96, 3)
    got = check("vgg11", x, num_classes=None, width=1 / 8, settings={"head": None})
    assert got["logits"].shape == (1, 2, 3, 64)

"""Descriptors kept on disk are those of their pictures and of their network's input."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from flax import nnx

from tests.models import drawn
from vgg_jax.config import Config, DataConfig, EvaluationConfig, VGGConfig
from vgg_jax.data.base import CorruptImage, Example, Source, Subset
from vgg_jax.features.collection import Collection, collect_activations


class Pictures:
    class_names = ("a", "b")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Example:
        blocks = np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8)
        image = blocks.repeat(8, axis=0).repeat(8, axis=1)
        data = cv2.imencode(".png", image)[1].tobytes()
        return {"image": data, "label": index % 2, "name": f"{index}.png"}


class DamagedRecord(Pictures):
    def __getitem__(self, index: int) -> Example:
        if index == 2:
            raise CorruptImage("cannot read record 2")
        return super().__getitem__(index)


def test_a_record_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    model = nnx.merge(*drawn.network("vgg11", width=0.02, fc_kernel=1, num_classes=2))
    config = Config(
        model=VGGConfig(name="vgg11"),
        data=DataConfig(
            dataset="folder", crop=32, num_threads=1, on_corrupt_image="skip"
        ),
        evaluation=EvaluationConfig(batch_size=8),
    )
    how = {"workdir": tmp_path, "step": 1, "scales": (32,), "layer": "relu7"}
    (found,), labels = collect_activations(
        model, DamagedRecord(), config, progress=None, **how
    )
    assert labels.tolist() == [0, 1, 1, 0]
    assert len(found) == 4
    config.data.on_corrupt_image = "raise"
    with pytest.raises(CorruptImage, match="cannot read record 2; on_corrupt"):
        collect_activations(model, DamagedRecord(), config, progress=None, **how)


def test_descriptors_that_are_not_finite_are_refused_and_not_kept(
    tmp_path: Path,
) -> None:
    model = nnx.merge(*drawn.network("vgg11", width=0.02, fc_kernel=1, num_classes=2))
    model.conv1_1.bias[...] = np.nan
    config = Config(
        model=VGGConfig(name="vgg11"),
        data=DataConfig(dataset="folder", crop=32, num_threads=1),
        evaluation=EvaluationConfig(batch_size=8),
    )
    how = {"workdir": tmp_path, "step": 1, "scales": (32,), "layer": "relu7"}
    with pytest.raises(ValueError, match=r"descriptor of 0\.png .* not finite"):
        collect_activations(model, Pictures(), config, progress=None, **how)
    assert not list(tmp_path.rglob("*.npz"))


def test_what_is_kept_is_found_by_its_picture(tmp_path: Path) -> None:
    model = nnx.merge(*drawn.network("vgg11", width=0.02, fc_kernel=1, num_classes=2))
    config = Config(
        model=VGGConfig(name="vgg11"),
        data=DataConfig(dataset="folder", crop=32, num_threads=1),
        evaluation=EvaluationConfig(batch_size=8),
    )

    def values(folder: str, source: Source, config: Config) -> np.ndarray:
        (found,), labels = collect_activations(
            model,
            source,
            config,
            workdir=tmp_path / folder,
            step=1,
            scales=(32,),
            layer="relu7",
            progress=None,
        )
        assert labels.tolist() == [source[i]["label"] for i in range(len(source))]
        return found

    at_once = values("one", Pictures(), config)
    assert len(np.unique(at_once.round(3), axis=0)) == 5
    some = values("two", Subset(Pictures(), np.array([3, 1])), config)
    np.testing.assert_allclose(some, at_once[[3, 1]], rtol=1e-4)
    np.testing.assert_allclose(values("two", Pictures(), config), at_once, rtol=1e-4)
    # Other statistics of the pixels make other descriptors.
    for other in ({"mean": (0.0, 0.0, 0.0)}, {"std": (2.0, 2.0, 2.0)}):
        changed = dataclasses.replace(
            config, data=dataclasses.replace(config.data, **other)
        )
        found = values("two", Pictures(), changed)
        assert not np.allclose(found, at_once, rtol=1e-2)


def test_damaged_descriptors_are_computed_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "relu7_q32.npz"
    for damage in (np.array([np.nan, 1.0]), np.array(2.0)):
        collection = Collection(path, {"version": 1})
        collection.update([(b"x" * 16, damage)])
        collection.save()
        assert b"x" * 16 not in Collection(path, {"version": 1})
        assert f"{path} is damaged" in capsys.readouterr().out

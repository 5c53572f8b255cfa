"""Kept posteriors are those of the same inputs, or are not used."""

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import chex
import numpy as np
import pytest
from flax import nnx

from tests.models.drawn import network
from vgg_jax.config import Config
from vgg_jax.evaluation import cache
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.protocols import Pass
from vgg_jax.files import DIGEST

INPUTS = {"step": 3, "images": 4, "class_names": ["a", "b"], "mean": [1.0, 2.0]}


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        posteriors=rng.random((4, 2), np.float32),
        labels=np.array([0, 1, 1, 0], np.int32),
        weights=np.array([1, 1, 0, 1], np.float32),
    )


@pytest.fixture
def path(tmp_path: Path, predictions: Predictions) -> Path:
    path = cache.cache_path(tmp_path, Pass("dense", 256), "score_map")
    cache.save(path, INPUTS, predictions)
    return path


def test_what_was_kept_comes_back(path: Path, predictions: Predictions) -> None:
    found = cache.load(path, json.loads(json.dumps(INPUTS)))
    chex.assert_trees_all_equal(
        dataclasses.asdict(found), dataclasses.asdict(predictions)
    )
    assert [p.name for p in path.parent.iterdir()] == ["dense_q256_score_map.npz"]


def test_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "none.npz", INPUTS)


def test_a_run_that_vanished_is_not_made_anew(
    tmp_path: Path, predictions: Predictions
) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        cache.save(
            tmp_path / "gone" / "predictions" / "center.npz", INPUTS, predictions
        )
    cache.save(tmp_path / "predictions" / "center.npz", INPUTS, predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


def test_other_inputs(path: Path) -> None:
    for other in (
        INPUTS | {"step": 4},
        INPUTS | {"mean": [1.0, 3.0]},
        INPUTS | {"new": None} | {"step": 4},
    ):
        with pytest.raises(cache.Unusable, match=r"another (mean|step)"):
            cache.load(path, other)


def test_any_damage_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(cache.Unusable, match="damaged"):
            cache.load(path, INPUTS)
    # A changed byte of the numbers; a flag that says "encrypted".
    labels = whole.index(np.array([0, 1, 1, 0], np.int32).tobytes())
    flags = whole.index(b"PK\1\2") + 8
    for at in (labels, flags):
        path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
        with pytest.raises(cache.Unusable, match="damaged"):
            cache.load(path, INPUTS)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.load(path.with_suffix(".npy"), INPUTS)


def test_arrays_of_absurd_size_are_damage(path: Path) -> None:
    """Memory for them is asked for before they are read."""
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("posteriors", "labels", "weights", "inputs"):
            file.writestr(f"{name}.npy", content.getvalue())
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.load(path, INPUTS)


def test_arrays_of_another_kind(path: Path, predictions: Predictions) -> None:
    for wrong in (
        {"posteriors": predictions.posteriors[:, :1]},
        {"labels": predictions.labels.astype(np.int64)},
        {"weights": predictions.weights[:3]},
    ):
        cache.save(path, INPUTS, dataclasses.replace(predictions, **wrong))
        with pytest.raises(cache.Unusable, match=next(iter(wrong))):
            cache.load(path, INPUTS)


def test_numbers_that_no_evaluation_gives_are_damage(
    path: Path, predictions: Predictions
) -> None:
    for name, value in (
        ("posteriors", np.nan),
        ("posteriors", -np.inf),
        ("labels", 2),
        ("weights", 0.5),
    ):
        wrong = getattr(predictions, name).copy()
        wrong.flat[0] = value
        cache.save(path, INPUTS, dataclasses.replace(predictions, **{name: wrong}))
        with pytest.raises(cache.Unusable, match=f"{name} are out of range"):
            cache.load(path, INPUTS)


def test_arrays_that_changed_with_their_checksums_are_damage(
    path: Path, predictions: Predictions
) -> None:
    """The sums of a zip file are of what was written last, by whomever."""
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["posteriors"][0, 0] += 1e-7
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(cache.Unusable, match="posteriors has changed"):
        cache.load(path, INPUTS)
    del arrays[DIGEST]  # of a version that kept none
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    cache.load(path, INPUTS)


class Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("code of a file was run",))


def test_no_code_is_loaded(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, inputs=np.array([Bomb()], dtype=object))
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.load(path, INPUTS)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.load(path, INPUTS)


def test_the_network_is_its_layers_and_its_weights(make_model: Callable) -> None:
    model, same, other = make_model(0), make_model(0), make_model(1)
    known = cache.network_inputs(model, 7)
    assert known == cache.network_inputs(same, 7)
    assert known["network"] != cache.network_inputs(other, 7)["network"]
    assert known != cache.network_inputs(model, 8)
    same.layers = (*model.layers[:2], dataclasses.replace(
        model.layers[2], ceil_mode=True
    ), *model.layers[3:])  # fmt: skip
    assert known["network"] != cache.network_inputs(same, 7)["network"]
    bias = model.fc8.bias
    model.fc8.bias = nnx.Param(bias[...].at[-1].add(1e-6))
    assert known["network"] != cache.network_inputs(model, 7)["network"]
    normalized = nnx.merge(*network("vgg11_bn", width=0.02, num_classes=2))
    known = cache.network_inputs(normalized, 7)
    normalized.bn1_1.mean[...] += 1e-6
    assert known != cache.network_inputs(normalized, 7)


def test_what_the_posteriors_depend_on(
    config: Config, make_source: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_pass = Pass("dense", 48)
    source = make_source([(40, 40)] * 40)

    def inputs(source=source, one_pass=one_pass, split="test", **data: object) -> dict:
        changed = dataclasses.replace(config.data, **data)
        its_config = dataclasses.replace(config, data=changed)
        known = cache.data_inputs(changed, split, source)
        return cache.all_inputs({"network": "x"}, known, its_config, one_pass)

    known = inputs()
    assert json.loads(json.dumps(known)) == known == inputs(num_threads=3)
    fewer = make_source([(40, 40)] * 39)
    renamed = dataclasses.replace(source, class_names=tuple("abcdefg"))
    relabeled = make_source([(40, 40)] * 40)
    relabeled.labels[0] = (source.labels[0] + 1) % 7
    redrawn = make_source([(40, 40)] * 40)
    redrawn.images[-1] = 255 - redrawn.images[-1]
    for other in (
        inputs(one_pass=Pass("dense", 32)),
        inputs(one_pass=Pass("multicrop", 48)),
        inputs(crop=24),
        inputs(mean=(0.0, 0.0, 0.0)),
        inputs(std=(1.0, 1.0, 1.0)),
        inputs(data_dir="elsewhere"),
        inputs(on_corrupt_image="skip"),
        inputs(dataset="imagenet2012"),
        inputs(split="validation"),
        inputs(fewer),
        inputs(renamed),
        inputs(relabeled),
        inputs(redrawn),
    ):
        assert other != known
    with monkeypatch.context() as context:
        context.setattr(cache, "VERSION", cache.VERSION + 1)
        assert inputs() != known
    config.evaluation.averaging = "posteriors"
    assert inputs() != known

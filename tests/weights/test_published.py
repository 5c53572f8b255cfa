"""The table of published weights."""

import hashlib
import io
import os
from pathlib import Path

import pytest
from etils import epath

from tests.weights.networks import random_network
from vgg_jax.evaluation.protocols import PROTOCOLS
from vgg_jax.models import MODELS
from vgg_jax.weights import PUBLISHED, Published, load_weights, save_weights
from vgg_jax.weights.lineage import LINEAGES
from vgg_jax.weights.published import (
    file_digest,
    identify,
    published_named,
    refuse_other_file,
)


def row(**facts: object) -> Published:
    known = {"network": "vgg11", "file": "a.pth", "license": None, "channels": "BGR"}
    return Published(**{"name": "x/y", "lineage": "oxford", **known, **facts})


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_the_table_fits_the_rest_of_the_library() -> None:
    for name, published in PUBLISHED.items():
        assert published.name == name and published.network in MODELS
        assert published.lineage in (None, *LINEAGES)
        places = (published.url, published.repository, published.package)
        assert sum(place is not None for place in places) == 1
        assert {result.protocol for result in published.results} <= set(PROTOCOLS)
        if published.digest is not None:
            algorithm, digits = published.digest.split(":")
            whole = 2 * hashlib.new(algorithm).digest_size
            assert len(digits) in (8, whole) and int(digits, 16) >= 0
        if published.url is not None and "torchvision/" in name:  # the name has it
            assert f"-{digits[:8]}.pth" in published.file == Path(published.url).name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'torchvision/vgg16'"):
        published_named("torchvison/vgg16")


def test_a_file_is_identified_by_size_and_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = epath.Path(tmp_path / "mine.pth")
    path.write_text("weights")
    monkeypatch.setitem(PUBLISHED, "x/y", row(size=7, digest=sha256(tmp_path / path)))
    assert identify(path) == PUBLISHED["x/y"]
    refuse_other_file(path, PUBLISHED["x/y"])
    path.write_text("WEIGHTS")  # as long, and another
    assert identify(path) is None
    with pytest.raises(ValueError, match=r"is not x/y: expected sha256 .* delete it"):
        refuse_other_file(path, PUBLISHED["x/y"])
    path.write_text("weights and more")
    with pytest.raises(ValueError, match="expected 7 bytes, got 16"):
        refuse_other_file(path, PUBLISHED["x/y"])


def test_eight_digits_identify_a_file_of_that_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = epath.Path(tmp_path / "a.pth"), epath.Path(tmp_path / "b.pth")
    named.write_text("weights")
    other.write_text("weights")
    monkeypatch.setitem(PUBLISHED, "x/y", row(digest=sha256(tmp_path / "a.pth")[:15]))
    assert identify(named) == PUBLISHED["x/y"] and identify(other) is None


def test_a_published_file_tells_lineage_and_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = random_network(), random_network(seed=1)
    path = tmp_path / "theirs.safetensors"
    save_weights(theirs, path, channels="BGR")
    unknown = load_weights(ours, path)
    assert unknown.lineage is None and unknown.normalization is None
    published = row(size=path.stat().st_size, digest=sha256(path))
    monkeypatch.setitem(PUBLISHED, "x/y", published)
    loaded = load_weights(ours, path)
    assert loaded.lineage == "oxford" and "published as x/y" in loaded.evidence
    assert loaded.normalization == LINEAGES["oxford"].normalization
    first, folded = theirs.conv1_1.kernel[...], ours.conv1_1.kernel[...]
    assert (folded == first).all()


def test_a_digest_is_computed_once_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def compute(file: io.BufferedReader, algorithm: str) -> object:
        computed.append(algorithm)
        return hashlib.new(algorithm, file.read())

    path = epath.Path(tmp_path / "a.pth")
    path.write_text("weights")
    published = row(size=7, digest=sha256(tmp_path / "a.pth"))
    monkeypatch.setitem(PUBLISHED, "x/y", published)
    monkeypatch.setattr(hashlib, "file_digest", compute)
    refuse_other_file(path, published)
    assert identify(path) == published
    digest = file_digest(epath.Path(tmp_path / "a.pth"))
    assert f"sha256:{digest}" == published.digest and computed == ["sha256"]
    assert file_digest(path, "md5") == hashlib.md5(b"weights").hexdigest()
    (tmp_path / "b.pth").write_text("theirs!")
    (tmp_path / "b.pth").replace(path)
    assert file_digest(path) == hashlib.sha256(b"theirs!").hexdigest()
    stat = path.stat().mtime
    (tmp_path / "a.pth").write_text("ours 12")
    os.utime(path, (stat + 1, stat + 1))
    assert file_digest(path) == hashlib.sha256(b"ours 12").hexdigest()
    assert computed == ["sha256", "md5", "sha256", "sha256"]

import gzip
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vgg_jax.data.prepare import idx_files, writer
from vgg_jax.data.prepare.idx_files import FASHION_MNIST
from vgg_jax.data.records import open_prepared
from vgg_jax.data.sources import open_source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four idx files as the published ones, with fewer pictures."""
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in idx_files.CONTENT_SHA256:
        count = 3000 if name.startswith("train") else 100
        shape = (count, 28, 28) if "images" in name else (count,)
        array = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
        digest = hashlib.sha256(header + array.tobytes()).hexdigest()
        monkeypatch.setitem(idx_files.CONTENT_SHA256, name, digest)
    return folder


def start(data_dir: Path, small: Path) -> subprocess.Popen:
    """Prepares in another process."""
    code = (
        "from pathlib import Path\n"
        "from vgg_jax.data.prepare import idx_files\n"
        f"idx_files.CONTENT_SHA256 = {idx_files.CONTENT_SHA256!r}\n"
        f"idx_files.FASHION_MNIST.run(Path({str(data_dir)!r}), Path({str(small)!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def assert_whole(data_dir: Path, small: Path) -> None:
    """All pictures are there, once, with their labels."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = idx_files.read_idx(small, f"{prefix}-images-idx3-ubyte")
        labels = idx_files.read_idx(small, f"{prefix}-labels-idx1-ubyte")
        expected = {x.tobytes(): y for x, y in zip(images, labels, strict=True)}
        source = open_prepared(FASHION_MNIST, data_dir, split)
        assert len(source) == len(images)
        for i in range(len(source)):
            png = np.frombuffer(source[i]["image"], np.uint8)
            pixels = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
            assert expected.pop(pixels.tobytes()) == source[i]["label"]
        assert not expected
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "fashion_mnist",
        "fashion_mnist.lock",
    ]
    assert [path.name for path in (data_dir / "fashion_mnist").iterdir()] == ["3.0.1"]


def test_published_pictures(fashion_mnist):
    test = open_source(fashion_mnist, "test")
    labels = np.array([test[i]["label"] for i in range(len(test))])
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    assert test.class_names[0] == "T-shirt/top" and test.class_names[9] == "Ankle boot"
    assert test[3]["name"] == "fashion_mnist test 3"
    pixels = [
        cv2.imdecode(np.frombuffer(test[i]["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        for i in range(len(test))
    ]
    assert pixels[0].shape == (28, 28) and pixels[0].dtype == np.uint8
    assert np.mean(pixels) / 255 == pytest.approx(0.2868, abs=1e-4)


def test_prepare_is_done_once(tmp_path, small, monkeypatch, capsys):
    data_dir = tmp_path / "data"
    final = FASHION_MNIST.run(data_dir, small)
    assert_whole(data_dir, small)
    printed = capsys.readouterr()
    assert "Fashion-MNIST: writing train  3,000/3,000 images" in printed.err
    assert f"ready in {final}" in printed.err
    assert printed.out == ""
    monkeypatch.setattr(writer, "write_data_set", None)
    assert FASHION_MNIST.run(data_dir) == final
    assert capsys.readouterr().err == ""


def test_a_killed_preparation_is_made_good(tmp_path, small):
    data_dir = tmp_path / "data"
    process = start(data_dir, small)
    assert "writing train" in process.stderr.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (data_dir / "fashion_mnist" / "3.0.1.incomplete").is_dir()
    assert not (data_dir / "fashion_mnist" / "3.0.1").exists()
    FASHION_MNIST.run(data_dir, small)
    assert_whole(data_dir, small)


def test_an_interrupted_preparation_leaves_nothing_to_open(
    tmp_path, small, monkeypatch
):
    def interrupted(shard, split, contents):
        yield shard.members[0]
        raise KeyboardInterrupt

    data_dir = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            FASHION_MNIST.run(data_dir, small)
    assert [path.name for path in (data_dir / "fashion_mnist").iterdir()] == [
        "3.0.1.incomplete"
    ]
    FASHION_MNIST.run(data_dir, small)
    assert_whole(data_dir, small)


def test_two_processes_at_once(tmp_path, small, capsys):
    data_dir = tmp_path / "data"
    other = start(data_dir, small)
    assert "writing train" in other.stderr.readline()
    FASHION_MNIST.run(data_dir, small)
    assert "ready in" in other.communicate()[1]
    assert capsys.readouterr().err == (
        "Fashion-MNIST: waiting for another process that prepares it\n"
    )
    assert_whole(data_dir, small)


def test_a_folder_with_other_files_is_refused(tmp_path, small):
    (small / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(10_008)))
    with pytest.raises(ValueError, match=r"t10k-labels.*not the published file"):
        FASHION_MNIST.run(tmp_path / "data", small)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
        FASHION_MNIST.run(tmp_path / "data", tmp_path / "nowhere")

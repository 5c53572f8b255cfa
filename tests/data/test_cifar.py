"""CIFAR archives in the layout of the official binary version, with fewer pictures."""

import dataclasses
import hashlib
import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.pipeline import eval_batches
from vgg_jax.data.prepare import __main__ as prepare
from vgg_jax.data.prepare import writer
from vgg_jax.data.prepare.cifar_archives import CIFAR10, CIFAR100
from vgg_jax.data.sources import open_source

# As the official files have them.
CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FINE_NAMES = tuple(f"fine_{i}" for i in range(100))
COARSE_NAMES = tuple(f"coarse_{i}" for i in range(20))
PER_FILE = 30

Pictures = list[tuple[int, np.ndarray]]  # label, RGB [32, 32, 3]


def pictures(count: int, classes: int, seed: int) -> Pictures:
    """Noise with one color of its own a channel, so that no two axes are alike."""
    rng = np.random.default_rng(seed)
    return [
        (
            int(rng.integers(classes)),
            rng.integers((0, 80, 160), (80, 160, 256), (32, 32, 3), np.uint8),
        )
        for _ in range(count)
    ]


def records(examples: Pictures, coarse: bool = False) -> bytes:
    """One byte a label, then the red, the green and the blue plane, row by row."""
    return b"".join(
        bytes([label // 5, label] if coarse else [label])
        + b"".join(image[..., channel].tobytes() for channel in range(3))
        for label, image in examples
    )


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        header = tarfile.TarInfo(folder)
        header.type = tarfile.DIRTYPE
        tar.addfile(header)
        for name, data in files.items():
            header = tarfile.TarInfo(f"{folder}/{name}")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture(scope="module")
def cifar10() -> tuple[dict[str, bytes], dict[str, Pictures]]:
    """The files of a small CIFAR-10, and its pictures by split."""
    splits = {"train": pictures(5 * PER_FILE, 10, 0), "test": pictures(PER_FILE, 10, 1)}
    files = {
        "batches.meta.txt": "\n".join((*CIFAR10_NAMES, "")).encode(),
        "readme.html": b"<html>",
        "test_batch.bin": records(splits["test"]),
    }
    for i in range(5):
        part = splits["train"][i * PER_FILE :][:PER_FILE]
        files[f"data_batch_{i + 1}.bin"] = records(part)
    return files, splits


@pytest.fixture(scope="module")
def cifar100() -> tuple[dict[str, bytes], dict[str, Pictures]]:
    splits = {"train": pictures(200, 100, 2), "test": pictures(50, 100, 3)}
    files = {
        "coarse_label_names.txt": "\n".join(COARSE_NAMES).encode(),
        "fine_label_names.txt": "\n".join(FINE_NAMES).encode(),
        "train.bin": records(splits["train"], coarse=True),
        "test.bin": records(splits["test"], coarse=True),
    }
    return files, splits


def assert_pictures(config: DataConfig, splits: dict[str, Pictures]) -> None:
    """Pixels and labels, all of them, as the network gets them."""
    for split, examples in splits.items():
        source = open_source(config, split)
        assert len(source) == len(examples)
        expected = {image.tobytes(): label for label, image in examples}
        assert len(expected) == len(examples)
        batches = eval_batches(
            source, config, channels=3, scale=32, crop=32, batch_size=8
        )
        for batch in batches:
            for image, label, weight in zip(
                batch["image"], batch["label"], batch["weight"], strict=True
            ):
                if weight:
                    assert expected.pop(image.tobytes()) == label
        assert not expected
        # Where it is in the official file.
        example = source[3]
        label, image = examples[int(example["name"].rpartition("_")[2])]
        assert example["name"].startswith(f"{config.dataset} {split} {split}_0")
        assert example["label"] == label
        np.testing.assert_array_equal(transforms.decode(example["image"], 3), image)


def settings(name: str, data_dir: Path) -> DataConfig:
    return DataConfig(
        dataset=name,
        data_dir=str(data_dir),
        crop=32,
        scale_min=32,
        scale_max=32,
        validation_fraction=0,
        num_threads=1,
    )


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar10_end_to_end(cifar10, tmp_path, unpacked, capsys):
    files, splits = cifar10
    data = archive("cifar-10-batches-bin", files)
    if unpacked:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(tmp_path, filter="data")
    else:
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    arguments = ["--from", str(tmp_path), "--data_dir", str(tmp_path), "--partial"]
    prepare.main(["cifar10", *arguments])
    assert capsys.readouterr().out == f"CIFAR-10 is in {tmp_path}/cifar10/3.0.2\n"
    config = settings("cifar10", tmp_path)
    assert_pictures(config, splits)
    source = open_source(config, "train")
    assert source.class_names == CIFAR10_NAMES
    assert isinstance(source._records, list)  # in memory
    assert len(pickle.dumps(source)) < 1000


def test_cifar100_has_the_fine_labels(cifar100, tmp_path):
    files, splits = cifar100
    data = archive("cifar-100-binary", files)
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(data)
    CIFAR100.run(tmp_path / "data", tmp_path, partial=True)
    config = settings("cifar100", tmp_path / "data")
    assert_pictures(config, splits)
    assert open_source(config, "test").class_names == FINE_NAMES


def test_tfds_reads_it_by_its_name(cifar10, tmp_path):
    files, splits = cifar10
    data = archive("cifar-10-batches-bin", files)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    CIFAR10.run(tmp_path, tmp_path, partial=True)
    source = tfds.data_source("cifar10", split="test", data_dir=tmp_path)
    for example in source:
        label, image = splits["test"][int(example["id"].decode().removeprefix("test_"))]
        assert example["label"] == label
        np.testing.assert_array_equal(example["image"], image)
    assert "tensorflow" not in sys.modules


def test_an_official_archive_needs_no_flag(cifar10, tmp_path, monkeypatch):
    """As if the official one had only these pictures: size, checksum and counts."""
    files, splits = cifar10
    data = archive("cifar-10-batches-bin", files)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"expected 170,052,171 bytes of md5 c32a1d4"):
        CIFAR10.run(tmp_path, tmp_path)
    official = dataclasses.replace(
        CIFAR10.open.__self__,
        size=len(data),
        md5=hashlib.md5(data).hexdigest(),
        files={
            "train": {f"data_batch_{i}.bin": PER_FILE for i in range(1, 6)},
            "test": {"test_batch.bin": PER_FILE},
        },
    )
    preparation = dataclasses.replace(CIFAR10, open=official.open)
    preparation.run(tmp_path / "data", tmp_path)
    assert_pictures(settings("cifar10", tmp_path / "data"), splits)
    other = bytearray(data)
    other[-1] ^= 1
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(other)
    with pytest.raises(ValueError, match=r"found another md5: .* add --partial"):
        preparation.run(tmp_path / "other", tmp_path)
    one_more = dataclasses.replace(
        official, files={**official.files, "test": {"test_batch.bin": PER_FILE + 1}}
    )
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"expected 31 pictures .* in test_batch\.bin .* found 92,190"
    ):
        dataclasses.replace(CIFAR10, open=one_more.open).run(
            tmp_path / "other", tmp_path
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "is not a whole archive"),
        ("not gzip", "is not a whole archive"),
        ("other folder", "has no cifar-10-batches-bin/data_batch_1.bin"),
        ("a file too few", "has no cifar-10-batches-bin/data_batch_5.bin"),
        ("no names", "has no cifar-10-batches-bin/batches.meta.txt"),
        ("cut record", "found 92,189 bytes; download it again"),
        ("labels", "expected labels below 10, the number of names in batches.meta.txt"),
        ("missing", "has neither cifar-10-binary.tar.gz nor cifar-10-batches-bin"),
    ],
)
def test_other_archives_get_one_line(cifar10, tmp_path, capsys, damage, message):
    files, _ = cifar10
    files, folder = dict(files), "cifar-10-batches-bin"
    if damage == "other folder":
        folder = "cifar-10-batches-py"
    elif damage == "a file too few":
        del files["data_batch_5.bin"]
    elif damage == "no names":
        del files["batches.meta.txt"]
    elif damage == "cut record":
        files["test_batch.bin"] = files["test_batch.bin"][:-1]
    elif damage == "labels":
        files["test_batch.bin"] = b"\x0a" + files["test_batch.bin"][1:]
    data = archive(folder, files)
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "not gzip":
        data = b"<html>moved</html>"
    if damage != "missing":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    data_dir = tmp_path / "data"
    arguments = ["--from", str(tmp_path), "--data_dir", str(data_dir), "--partial"]
    assert prepare.main(["cifar10", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (data_dir / "cifar10").exists()


def test_an_interrupted_preparation_goes_on(cifar10, tmp_path, monkeypatch):
    files, splits = cifar10
    data = archive("cifar-10-batches-bin", files)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    monkeypatch.setattr(writer, "shard_count", lambda size, examples: 4)
    write = writer.write_shard
    config = settings("cifar10", tmp_path)

    def stopping(shard, split, contents):
        for number, member in enumerate(write(shard, split, contents)):
            yield member
            if "train.array_record-00002" in shard.path.name and number == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            CIFAR10.run(tmp_path, tmp_path, partial=True)
    with pytest.raises(FileNotFoundError, match=r"prepare cifar10 --from DIR"):
        open_source(config, "train")
    incomplete = tmp_path / "cifar10" / "3.0.2.incomplete"
    kept = {path.name: path.stat().st_ino for path in incomplete.glob("*-of-00004")}
    assert len(kept) == 2
    final = CIFAR10.run(tmp_path, tmp_path, partial=True)
    assert not incomplete.exists()
    assert all((final / name).stat().st_ino == kept[name] for name in kept)
    assert_pictures(config, splits)


def test_pictures_are_shuffled_once_and_for_all(cifar10, tmp_path):
    files, splits = cifar10
    data = archive("cifar-10-batches-bin", files)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    CIFAR10.run(tmp_path, tmp_path, partial=True)
    source = open_source(settings("cifar10", tmp_path), "train")
    names = [source[i]["name"].split()[-1] for i in range(len(source))]
    assert sorted(names) == [f"train_{i:05}" for i in range(len(splits["train"]))]
    # Spelled out, because a run from last year must still validate on the same.
    assert names[:3] == FIRST


FIRST = ["train_00093", "train_00083", "train_00144"]

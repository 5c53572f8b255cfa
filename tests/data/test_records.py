import dataclasses
import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from vgg_jax.config import DataConfig
from vgg_jax.data import records as records_module
from vgg_jax.data.base import CorruptImage, name_of, sample_digest
from vgg_jax.data.pipeline import eval_batches, train_batches
from vgg_jax.data.prepare.writer import serialize
from vgg_jax.data.records import Records
from vgg_jax.data.sources import open_source, open_training

ROOT = Path(__file__).parents[2]
WNIDS = ("n01440764", "n01443537", "n15075141")


def jpeg(label: int, number: int) -> bytes:
    image = np.full((40 + number, 50, 3), 80 * label, np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A small ImageNet with the features of TFDS's, built without TensorFlow."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=WNIDS),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._examples("train", 40),
            "validation": self._examples("val", 3),
        }

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, prefix, count):
        for label in range(3):
            for number in range(count):
                name = f"{prefix}_{label}_{number}.JPEG"
                yield (
                    name,
                    {
                        "image": io.BytesIO(jpeg(label, number)),
                        "label": label,
                        "file_name": name,
                    },
                )


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    data_dir = tmp_path_factory.mktemp("imagenet")
    builder = Imagenet2012(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return DataConfig(
        dataset="imagenet2012", data_dir=str(data_dir), validation_fraction=0.1
    )


def test_imagenet_splits(imagenet):
    sizes = {"train": 108, "validation": 12, "test": 9}
    names = []
    for split, size in sizes.items():
        source = open_source(imagenet, split)
        assert len(source) == size
        assert source.class_names == WNIDS
        for i in range(size):
            example = source[i]
            file_name = example["name"].split()[-1]
            prefix, label, number = file_name.removesuffix(".JPEG").split("_")
            assert prefix == ("val" if split == "test" else "train")
            assert example["label"] == int(label)
            assert example["image"] == jpeg(int(label), int(number))
            names.append(example["name"])
    assert len(set(names)) == 129


@pytest.mark.parametrize("in_memory", [False, True])
def test_records_survive_pickling(imagenet, in_memory, monkeypatch):
    monkeypatch.setattr(records_module, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    directory = Path(imagenet.data_dir) / "imagenet2012" / "5.1.0"
    records = Records(directory, "train", remedy="")
    assert isinstance(records._records, list) == in_memory
    data = pickle.dumps(records)
    assert len(data) < 1000  # a worker process reads the files itself
    again = pickle.loads(data)
    assert [again[i] for i in range(120)] == [records[i] for i in range(120)]


def test_missing_imagenet_says_what_to_type(tmp_path):
    config = DataConfig(dataset="imagenet2012", data_dir=str(tmp_path))
    command = "python -m vgg_jax.data.prepare imagenet2012 --from DIR --data_dir"
    with pytest.raises(FileNotFoundError, match=f"`{command} {tmp_path}`"):
        open_source(config, "train")


def test_missing_split_says_what_to_type(imagenet):
    directory = Path(imagenet.data_dir) / "imagenet2012" / "5.1.0"
    with pytest.raises(
        FileNotFoundError, match=r"no split 'test', only train, .*; do so"
    ):
        Records(directory, "test", remedy="do so")


def test_other_file_formats_are_refused(imagenet, tmp_path):
    directory = Path(imagenet.data_dir) / "imagenet2012" / "5.1.0"
    for path in directory.glob("*.json"):
        text = path.read_text().replace("array_record", "tfrecord")
        (tmp_path / path.name).write_text(text)
    with pytest.raises(ValueError, match=r"holds tfrecord files.*array_record; do so"):
        Records(tmp_path, "train", remedy="do so")


@pytest.fixture
def damaged(imagenet: DataConfig, tmp_path: Path) -> tuple[DataConfig, Path]:
    """A copy of the small ImageNet to damage, and its folder."""
    shutil.copytree(imagenet.data_dir, tmp_path / "copy")
    config = dataclasses.replace(
        imagenet,
        data_dir=str(tmp_path / "copy"),
        crop=32,
        scale_min=32,
        scale_max=32,
        num_threads=1,
    )
    return config, tmp_path / "copy" / "imagenet2012" / "5.1.0"


def shard_of(directory: Path, split: str) -> Path:
    (path,) = directory.glob(f"*-{split}.*")
    return path


def flip_bit_of(path: Path, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)


def test_training_and_validation_share_one_set(imagenet):
    train, validation = open_training(imagenet)
    assert train._source is validation._source
    for split, source in (("train", train), ("validation", validation)):
        other = open_source(imagenet, split)
        assert [source[i] for i in range(9)] == [other[i] for i in range(9)]
    no_validation = dataclasses.replace(imagenet, validation_fraction=0.0)
    with pytest.raises(ValueError, match="so there is no validation split"):
        open_training(no_validation)


@pytest.mark.parametrize("in_memory", [False, True])
def test_damaged_records_are_named_or_left_out(damaged, in_memory, monkeypatch, caplog):
    monkeypatch.setattr(records_module, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    config, directory = damaged
    path = shard_of(directory, "validation")
    flip_bit_of(path, b"val_1_2.JPEG")
    source = open_source(config, "test")
    how = {"channels": 3, "scale": 32, "crop": 32, "batch_size": 9}
    message = rf"cannot read record \d of .*{path.name}: .*on_corrupt_image"
    with pytest.raises(CorruptImage, match=message):
        next(eval_batches(source, config, **how))
    config = dataclasses.replace(config, on_corrupt_image="skip")
    with caplog.at_level(logging.WARNING):
        (batch,) = eval_batches(source, config, **how)
    assert batch["weight"].sum() == 8
    whole = batch["weight"] > 0
    assert sorted(batch["label"][whole]) == [0, 0, 0, 1, 1, 2, 2, 2]
    (logged,) = caplog.records
    assert path.name in logged.getMessage() and "left out" in logged.getMessage()
    # What tells the set from others, and the list of those left out, need it no more.
    assert sample_digest(source) == sample_digest(source)
    [left_out] = np.flatnonzero(batch["weight"] == 0).tolist()
    assert path.name in name_of(source, left_out)
    assert "JPEG" in name_of(source, (left_out + 1) % 9)


def test_a_truncated_file_is_left_out_and_others_are_not(damaged, caplog):
    config, directory = damaged
    path = shard_of(directory, "train")
    path.write_bytes(path.read_bytes()[:70_000])
    config = dataclasses.replace(config, on_corrupt_image="skip")
    train, _ = open_training(config)
    arguments = {"channels": 3, "batch_size": 4, "seed": 0, "start_step": 0}
    with caplog.at_level(logging.WARNING):
        batch = next(train_batches(train, config, **arguments))
    assert not batch["weight"].any()
    assert f"{path} is damaged: expected 120 records" in caplog.text
    assert len(open_source(config, "test")[0]["image"])


@pytest.mark.parametrize(
    "record",
    [b"no example", serialize({"image": b"jpeg"}), serialize({"label": 1})],
    ids=["no message", "no label", "no image"],
)
def test_a_record_that_is_no_example_is_corrupt(imagenet, record):
    directory = Path(imagenet.data_dir) / "imagenet2012" / "5.1.0"
    records = Records(directory, "validation", remedy="")
    records._records[3] = record
    with pytest.raises(CorruptImage, match=r"imagenet2012 validation 3 in .*image and"):
        records[3]


def test_a_missing_file_says_what_to_type(damaged):
    config, directory = damaged
    path = shard_of(directory, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file {path}.*prepare it once"):
        open_source(config, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"splits": 3}', '{"splits": [{}]}', "\0\x80"]
)
def test_damaged_metadata_says_what_to_type(damaged, name, text):
    config, directory = damaged
    (directory / name).write_bytes(text.encode("latin-1"))
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"{directory}.*prepare it once") as error:
            open_source(config, split)
        assert not isinstance(error.value, CorruptImage)
    (directory / name).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"prepare it once"):
        open_source(config, "train")


@pytest.mark.slow
def test_worker_processes_read_1500_files_with_1024_descriptors(tmp_path):
    """Each worker, too, has the limit of `ulimit -n 1024`."""
    code = f"""
import resource, sys
from pathlib import Path

def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    import cv2, numpy as np
    from vgg_jax.config import DataConfig
    from vgg_jax.data.pipeline import eval_batches, train_batches
    from vgg_jax.data.prepare.writer import (
        Contents, Member, Preparation, Shard, write_metadata, write_shard
    )
    from vgg_jax.data.sources import open_training, open_source

    # Too large for memory, so that files are read as they are needed.
    pixels = np.random.default_rng(0).integers(0, 256, (170, 170, 3), np.uint8)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    directory = Path({str(tmp_path)!r}) / "shapes" / "1.0.0"
    directory.mkdir(parents=True)
    members = [Member(str(i), i % 3, 0, len(png)) for i in range(2)]
    contents = Contents(
        class_names=["a", "b", "c"], members={{}}, read=lambda split, member: png
    )
    first = directory / "first"
    for _ in write_shard(Shard(first, members), "train", contents):
        pass
    shards = []
    for i in range(1500):
        path = directory / f"shapes-train.array_record-{{i:05}}-of-01500"
        path.symlink_to(first)
        shards.append(Shard(path, members))
    preparation = Preparation(
        name="shapes", version="1.0.0", title="", files=(), open=None
    )
    write_metadata(directory, preparation, contents, {{"train": shards}})
    config = DataConfig(
        dataset="tfds:shapes", data_dir={str(tmp_path)!r}, crop=16, scale_min=16,
        scale_max=16, num_workers=2, num_threads=2, validation_fraction=0.5,
    )
    train, validation = open_training(config)
    assert train._source is validation._source
    assert not isinstance(train._source._records, list)
    batches = train_batches(
        train, config, channels=3, batch_size=100, seed=0, start_step=0
    )
    weight = sum(next(batches)["weight"].sum() for _ in range(15))
    for batch in eval_batches(
        validation, config, channels=3, scale=16, crop=16, batch_size=100
    ):
        weight += batch["weight"].sum()
    print(int(weight))

if __name__ == "__main__":
    main()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "3000\n", done.stderr

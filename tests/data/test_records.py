import io
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from vgg_jax.config import DataConfig
from vgg_jax.data import records as records_module
from vgg_jax.data.records import Records
from vgg_jax.data.sources import open_source

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

"""data.dataset="tfds:NAME" on sets that TFDS itself writes here."""

import io
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from vgg_jax.config import DataConfig
from vgg_jax.data import transforms
from vgg_jax.data.pipeline import eval_batches
from vgg_jax.data.sources import open_source

NAMES = ("circle", "square")
IMAGE = tfds.features.Image(shape=(None, None, 3))
LABEL = tfds.features.ClassLabel(names=NAMES)


def pixels(number: int) -> np.ndarray:
    """Another size and color for every number: RGB uint8."""
    return np.full((20 + number % 3, 24, 3), (6 * number, 100, 200), np.uint8)


def write_set(
    data_dir: Path,
    name: str,
    features: Mapping[str, Any],
    *,
    splits: Mapping[str, int],
    supervised_keys: tuple[str, str] | None = None,
    version: str = "1.0.0",
    config: str | None = None,
    suffix: str = ".png",
) -> None:
    """Lets TFDS write a set: example i has `pixels(i)` and the label i % 2."""

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised_keys,
        )

    def example(number: int) -> dict[str, Any]:
        encoded = cv2.imencode(suffix, pixels(number)[..., ::-1])[1].tobytes()
        values = {
            tfds.features.Image: lambda: io.BytesIO(encoded),
            tfds.features.ClassLabel: lambda: number % 2,
            tfds.features.Text: lambda: f"picture {number}",
        }
        return {key: values[type(one)]() for key, one in features.items()}

    def generate(self, count):
        for number in range(count):
            yield number, example(number)

    def split_generators(self, dl_manager):
        return {split: generate(self, count) for split, count in splits.items()}

    members = {
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate,
    }
    if config is not None:
        members["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
    camel = "".join(word.capitalize() for word in name.split("_"))
    bases = (tfds.core.GeneratorBasedBuilder,)
    kind = types.new_class(
        camel, bases, {"skip_registration": True}, lambda body: body.update(members)
    )
    builder = kind(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()


def settings(data_dir: Path, name: str, **changes: Any) -> DataConfig:
    return DataConfig(
        dataset=f"tfds:{name}",
        data_dir=str(data_dir),
        crop=16,
        scale_min=16,
        scale_max=16,
        validation_fraction=0.25,
        num_threads=1,
        **changes,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of several kinds."""
    root = tmp_path_factory.mktemp("tfds")
    shapes = {"picture": IMAGE, "kind": LABEL, "file_name": tfds.features.Text()}
    write_set(root, "shapes", shapes, splits={"train": 40, "test": 10})
    write_set(
        root,
        "photos",
        {"image": tfds.features.Image(encoding_format="jpeg"), "label": LABEL},
        splits={"train": 8, "validation": 6},
        suffix=".jpg",
    )
    two_labels = {
        "image": IMAGE,
        "coarse": tfds.features.ClassLabel(num_classes=5),
        "label": LABEL,
    }
    write_set(
        root,
        "two_labels",
        two_labels,
        splits={"train": 8, "test": 2},
        supervised_keys=("image", "label"),
    )
    write_set(root, "ambiguous", two_labels, splits={"train": 8, "test": 2})
    write_set(
        root,
        "two_images",
        {"left": IMAGE, "right": IMAGE, "label": LABEL},
        splits={"train": 8},
    )
    write_set(root, "no_label", {"image": IMAGE}, splits={"train": 8})
    write_set(root, "no_test", {"image": IMAGE, "label": LABEL}, splits={"train": 8})
    for config, version in (
        ("small", "1.9.0"),
        ("small", "1.10.0"),
        ("large", "1.9.0"),
    ):
        write_set(
            root,
            "configured",
            {"image": IMAGE, "label": LABEL},
            splits={"train": 8, "test": int(version.split(".")[1]) + 1},
            config=config,
            version=version,
        )
    return root


def test_features_are_found_by_their_kind(data_dir):
    config = settings(data_dir, "shapes")
    sizes = {"train": 30, "validation": 10, "test": 10}
    numbers = []
    for split, size in sizes.items():
        source = open_source(config, split)
        assert len(source) == size and source.class_names == NAMES
        for i in range(size):
            example = source[i]
            number = int(example["name"].rpartition(" ")[2])
            official = "test" if split == "test" else "train"
            assert example["name"] == f"shapes {official} picture {number}"
            assert example["label"] == number % 2
            image = transforms.decode(example["image"], 3)
            np.testing.assert_array_equal(image, pixels(number))
            numbers += [number] * (split != "test")
    assert sorted(numbers) == list(range(40))


def test_validation_is_the_test_set_where_there_is_no_other(data_dir):
    config = settings(data_dir, "photos")
    source = open_source(config, "test")
    assert len(source) == 6 and source[0]["name"].startswith("photos validation")
    assert source[0]["image"].startswith(b"\xff\xd8")  # a JPEG, as it is stored
    batch = next(
        eval_batches(source, config, channels=3, scale=16, crop=16, batch_size=6)
    )
    reds = {
        round(float(image[..., 0].mean()) / 6): label
        for image, label in zip(batch["image"], batch["label"], strict=True)
    }
    assert reds == {number: number % 2 for number in range(6)}
    assert len(open_source(config, "train")) == 6  # of 8, the others validate


def test_of_several_labels_the_supervised_one_counts(data_dir):
    source = open_source(settings(data_dir, "two_labels"), "test")
    assert source.class_names == NAMES


def test_configurations_and_versions(data_dir):
    for name, size in (
        ("configured/small:1.9.0", 10),
        ("configured/small", 11),  # 1.10.0 is newer than 1.9.0
        ("configured/large", 10),
    ):
        assert len(open_source(settings(data_dir, name), "test")) == size
    with pytest.raises(
        ValueError,
        match=r"tfds:configured has several configurations; name one of "
        r"tfds:configured/large, tfds:configured/small$",
    ):
        open_source(settings(data_dir, "configured"), "test")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "shape",
            FileNotFoundError,
            r"no tfds:shape in .*tfds:shapes:1\.0\.0.*prepare",
        ),
        ("shapes:2.0.0", FileNotFoundError, r"no tfds:shapes:2\.0\.0 in .*shapes:1\.0"),
        ("configured/huge", FileNotFoundError, r"has .*tfds:configured/large:1\.9\.0"),
        ("no_label", ValueError, "one ClassLabel feature in an example, found none"),
        ("ambiguous", ValueError, "one ClassLabel feature .* found coarse, label"),
        ("two_images", ValueError, "one Image feature .* found left, right"),
        ("no_test", FileNotFoundError, "no split 'test', only train; prepare"),
    ],
)
def test_other_sets_are_refused_with_what_there_is(data_dir, name, error, message):
    with pytest.raises(error, match=message):
        open_source(settings(data_dir, name), "test" if name == "no_test" else "train")


def test_a_set_without_random_access_is_refused(data_dir, tmp_path):
    folder = tmp_path / "shapes" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "shapes" / "1.0.0").glob("*.json"):
        text = path.read_text().replace("array_record", "tfrecord")
        (folder / path.name).write_text(text)
    with pytest.raises(
        ValueError, match=r"holds tfrecord files.*file_format='array_re"
    ):
        open_source(settings(tmp_path, "shapes"), "train")


def test_an_empty_data_dir_is_said_to_be_empty(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no tfds:shapes in .*has no data sets"
    ):
        open_source(settings(tmp_path, "shapes"), "train")

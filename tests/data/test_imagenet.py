import io
import itertools
import random
import re
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from vgg_jax.config import Config, DataConfig, EvaluationConfig, NiNConfig
from vgg_jax.data import transforms
from vgg_jax.data.prepare import __main__ as prepare
from vgg_jax.data.prepare import imagenet_tars, writer
from vgg_jax.data.prepare.imagenet_tars import IMAGENET
from vgg_jax.data.records import Records
from vgg_jax.data.sources import open_source
from vgg_jax.training.loop import train

ROOT = Path(__file__).parents[2]
TRAIN, VALIDATION = imagenet_tars.TARS.values()
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
WNIDS = {"n01440764": 0, "n01739381": 59, "n02105855": 230}

Files = dict[str, bytes]


def tar(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return file.getvalue()


def write_tars(folder: Path, train: Files, validation: Files) -> None:
    """The two official files with these pictures."""
    folder.mkdir(exist_ok=True)
    inner = {
        f"{wnid}.tar": tar(dict(names))
        for wnid, names in itertools.groupby(
            train.items(), key=lambda item: item[0].partition("_")[0]
        )
    }
    (folder / TRAIN).write_bytes(tar(inner))
    (folder / VALIDATION).write_bytes(tar(validation))


@pytest.fixture(scope="module")
def pictures(photographs: list[bytes]) -> tuple[Files, Files]:
    """(train, validation): parts of photographs, as file names and bytes."""
    images = [PIL.Image.open(io.BytesIO(data)) for data in photographs]
    rng = random.Random(0)

    def part(image: PIL.Image.Image, file_format: str = "JPEG") -> bytes:
        left, top = rng.randrange(300), rng.randrange(200)
        file = io.BytesIO()
        image.crop((left, top, left + 120, top + 90)).save(file, file_format)
        return file.getvalue()

    train = {
        f"{wnid}_{i}.JPEG": part(image)
        for wnid, image in zip(WNIDS, images, strict=True)
        for i in range(14)
    }
    train |= {CMYK: part(images[0].convert("CMYK")), PNG: part(images[1], "PNG")}
    validation = [(f"ILSVRC2012_val_{i:08}.JPEG", part(images[0])) for i in range(1, 7)]
    rng.shuffle(validation)  # the official file is in no order either
    return dict(sorted(train.items())), dict(validation)


@pytest.fixture(scope="module")
def tars(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, *pictures)
    return folder


@pytest.fixture(scope="module")
def data_dir(tars, tmp_path_factory) -> Path:
    """ImageNet, prepared from the small tar files."""
    data_dir = tmp_path_factory.mktemp("data")
    IMAGENET.run(data_dir, tars, partial=True)
    return data_dir


@pytest.fixture
def in_eight_files(monkeypatch):
    """The training pictures, which would fit into one."""
    monkeypatch.setattr(
        writer, "shard_count", lambda size, examples: 8 if examples > 8 else 1
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_pictures_and_labels_are_those_of_the_tar_files(data_dir, pictures):
    config = DataConfig(
        dataset="imagenet2012", data_dir=str(data_dir), validation_fraction=0
    )
    train, validation = pictures
    for split, files in (("train", train), ("test", validation)):
        source = open_source(config, split)
        assert len(source.class_names) == 1000 and source.class_names[1] == "n01443537"
        found = {
            example["name"].split()[-1]: (example["image"], example["label"])
            for example in (source[i] for i in range(len(source)))
        }
        assert len(source) == len(found)
        assert found.keys() == files.keys()
        for name, (data, label) in found.items():
            if split == "train":
                assert label == WNIDS[name.partition("_")[0]]
            if name not in (CMYK, PNG):
                assert data == files[name]
            else:
                recoded = PIL.Image.open(io.BytesIO(data))
                assert (recoded.format, recoded.mode) == ("JPEG", "RGB")
                before, after = (
                    transforms.decode(d, 3).astype(int) for d in (files[name], data)
                )
                assert np.abs(before - after).mean() < 2
    # As everyone has them: the first validation picture shows a sea snake.
    assert found["ILSVRC2012_val_00000001.JPEG"][1] == 65
    assert source.class_names[65] == "n01751748"


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The pictures as TFDS's own writer writes them."""

    VERSION = tfds.core.Version(IMAGENET.version)
    records: Records

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=imagenet_tars.wnids()),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in reversed(range(len(self.records))):
            example = self.records[i]
            name = example["name"].split()[-1]
            image = io.BytesIO(example["image"])
            yield name, {"image": image, "label": example["label"], "file_name": name}


def test_the_files_are_those_that_tfds_writes(data_dir, tars, tmp_path, in_eight_files):
    ours = IMAGENET.run(tmp_path / "ours", tars, partial=True)
    Imagenet2012.records = Records(ours, "train", remedy="")
    builder = Imagenet2012(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=8)
    )
    theirs = Path(builder.data_dir)
    names = sorted(path.name for path in theirs.glob("*train*"))
    assert len(names) == 8
    assert names == sorted(path.name for path in ours.glob("*train*"))
    assert (ours / "features.json").read_text() == (
        theirs / "features.json"
    ).read_text()
    info = tfds.builder_from_directory(ours).info
    assert (
        info.splits["train"].shard_lengths == builder.info.splits["train"].shard_lengths
    )
    records = Records(theirs, "train", remedy="")
    assert [records[i] for i in range(len(records))] == [
        Imagenet2012.records[i] for i in range(len(records))
    ]


def test_tfds_reads_the_data_set_by_its_name(data_dir, pictures):
    source = tfds.data_source(
        "imagenet2012",
        split="validation",
        data_dir=data_dir,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    assert {e["file_name"].decode(): e["image"] for e in source} == pictures[1]
    assert "tensorflow" not in sys.modules


def test_preparing_goes_on_after_the_last_whole_file(
    tars, tmp_path, monkeypatch, capsys, in_eight_files
):
    whole = contents(IMAGENET.run(tmp_path / "whole", tars, partial=True))
    write = writer.write_shard
    stops = iter([25, 11, 10**6])

    def stopping(shard, split, contents):
        for member in write(shard, split, contents):
            yield member
            if next(countdown, None) is None:
                raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_shard", stopping)
    incomplete = tmp_path / "data" / "imagenet2012" / "5.1.0.incomplete"
    kept: dict[str, int] = {}
    for files in (4, 6):
        countdown = iter(range(next(stops)))
        with pytest.raises(KeyboardInterrupt):
            IMAGENET.run(tmp_path / "data", tars, partial=True)
        inodes = {
            path.name: path.stat().st_ino for path in incomplete.glob("*-of-00008")
        }
        assert len(inodes) == files
        assert inodes.items() >= kept.items()
        kept = inodes
    countdown = iter(range(next(stops)))
    final = IMAGENET.run(tmp_path / "data", tars, partial=True)
    assert contents(final) == whole
    assert not incomplete.exists()
    assert all((final / name).stat().st_ino == kept[name] for name in kept)
    capsys.readouterr()
    (tars_gone := tmp_path / "nothing").mkdir()
    assert IMAGENET.run(tmp_path / "data", tars_gone) == final
    assert capsys.readouterr().err == ""


def test_files_of_other_tars_are_not_gone_on_with(
    tars, pictures, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            IMAGENET.run(tmp_path / "data", tars, partial=True)
    train, validation = pictures
    train = {name: data for name, data in train.items() if name != CMYK}
    write_tars(tmp_path / "tars", train, validation)
    with pytest.raises(ValueError, match=r"5\.1\.0\.incomplete was begun with other"):
        IMAGENET.run(tmp_path / "data", tmp_path / "tars", partial=True)


@pytest.fixture
def small_official(tars, pictures, monkeypatch) -> None:
    """As if ImageNet had only these pictures."""
    train, validation = pictures
    sizes = {
        split: (tars / name).stat().st_size
        for split, name in imagenet_tars.TARS.items()
    }
    monkeypatch.setattr(imagenet_tars, "TAR_BYTES", sizes)
    counts = {"train": len(train), "validation": len(validation)}
    monkeypatch.setattr(imagenet_tars, "IMAGES", counts)
    assert imagenet_tars.wnids()[230] == "n02105855"
    monkeypatch.setattr(imagenet_tars, "wnids", lambda: list(WNIDS))
    monkeypatch.setattr(imagenet_tars, "validation_wnids", lambda: [*WNIDS, *WNIDS])


def test_whole_tar_files_need_no_flag(tars, tmp_path, capsys, small_official):
    prepare.main(["imagenet2012", "--from", str(tars), "--data_dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.out == f"ImageNet is in {tmp_path}/imagenet2012/5.1.0\n"
    assert re.search(r"reading the index of train  3/3 classes", printed.err)
    assert re.search(r"writing train  44/44 images", printed.err)
    assert "only" not in printed.err
    assert (
        len(
            Records(
                tmp_path / "imagenet2012" / "5.1.0",
                "validation",
                remedy="",
            )
        )
        == 6
    )


def test_a_picture_too_few_is_noticed(tars, tmp_path, monkeypatch, small_official):
    monkeypatch.setitem(imagenet_tars.IMAGES, "train", 45)
    with pytest.raises(
        ValueError, match=r"expected 45 pictures .* found 44; .*partial"
    ):
        IMAGENET.run(tmp_path, tars)
    assert not list(tmp_path.glob("*/*"))


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = prepare.main(["imagenet2012", *arguments])
    return code, capsys.readouterr().err


def test_the_size_of_the_tar_files_is_looked_at_first(tars, tmp_path, capsys):
    arguments = ("--from", str(tars), "--data_dir", str(tmp_path))
    code, error = run(capsys, *arguments)
    assert code == 1
    assert f"expected 147,897,477,120 bytes in {tars / TRAIN}, found" in error
    assert error.count("\n") == 1
    (tmp_path / VALIDATION).touch()
    code, error = run(capsys, "--from", str(tmp_path), "--partial")
    assert code == 1 and f"{tmp_path} has no {TRAIN};" in error
    code, error = run(capsys)
    assert code == 2 and "--from" in error


def inner(name: str, data: bytes = b"jpeg") -> bytes:
    return tar({"n01440764.tar": tar({name: data})})


GOOD = tar({"ILSVRC2012_val_00000002.JPEG": b"jpeg"})


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (b"", GOOD, f"{TRAIN} is not a whole tar file"),
        (b"\x1f\x8b" + bytes(2000), GOOD, f"{TRAIN} is not a whole tar file"),
        (tar({"n02085620_1.JPEG": b"jpeg"}), GOOD, "among them n02085620_1.JPEG"),
        (tar({"n99999999.tar": b""}), GOOD, "expected n01440764.tar to n15075141.tar"),
        (inner("n01440764_1.png"), GOOD, "n01440764_NUMBER.JPEG in n01440764.tar"),
        (inner("n01443537_1.JPEG"), GOOD, "found 'n01443537_1.JPEG'"),
        (
            inner("n01440764_1.JPEG", bytes(9999))[:8000],
            GOOD,
            "n01440764.tar is cut off",
        ),
        (
            inner("n01440764_1.JPEG", bytes(9999))[:700],
            GOOD,
            "n01440764.tar is cut off",
        ),
        (
            tar({"n01440764.tar": tar({"n01440764_1.JPEG": bytes(9999)})[:8000]}),
            GOOD,
            "n01440764_1.JPEG is cut off",
        ),
        (inner("n01440764_1.JPEG"), tar({"val/1.JPEG": b""}), "among them val/1.JPEG"),
        # A header and its block of data, once more.
        (inner("n01440764_1.JPEG"), GOOD[:1024] + GOOD, "each once; found 2 members"),
        (inner("n01440764_1.JPEG"), GOOD[:513], r"val_00000002\.JPEG is cut off"),
    ],
)
def test_tar_files_of_another_structure(train, validation, message, tmp_path):
    (tmp_path / TRAIN).write_bytes(train)
    (tmp_path / VALIDATION).write_bytes(validation)
    with pytest.raises(ValueError, match=message):
        IMAGENET.run(tmp_path / "data", tmp_path, partial=True)


def test_a_class_too_few_is_named(tars, tmp_path, monkeypatch, small_official):
    wnids = [*WNIDS, "n15075141"]
    monkeypatch.setattr(imagenet_tars, "wnids", lambda: wnids)
    with pytest.raises(ValueError, match=r"has 3 of 4 members: no n15075141\.tar"):
        IMAGENET.run(tmp_path, tars)


def test_too_small_a_disk_is_noticed_before_writing(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1)
    )
    with pytest.raises(OSError, match=r"of free space .* found 0\.0 GB; .*--data_dir"):
        IMAGENET.run(tmp_path, tars, partial=True)


def test_a_network_trains_from_the_tar_files(data_dir, tmp_path, capfd):
    data = DataConfig(
        dataset="imagenet2012",
        data_dir=str(data_dir),
        crop=32,
        scale_min=36,
        scale_max=48,
        color_shift=0.1,
        validation_fraction=0.2,
    )
    config = Config(
        model=NiNConfig(name="nin_cifar", width=0.05),
        data=data,
        evaluation=EvaluationConfig(center_scale=36, batch_size=8),
        batch_size=8,
        num_epochs=1,
    )
    assert train(config, tmp_path) is None
    lines = capfd.readouterr().out
    assert "35 images to train on, 9 to validate" in lines
    assert "finished at step 5" in lines

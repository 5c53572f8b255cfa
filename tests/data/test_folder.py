import shutil
from pathlib import Path

import pytest

from vgg_jax.data.base import MAX_BYTES, CorruptImage
from vgg_jax.data.folder import open_folder, refuse_inside
from vgg_jax.files import parse_path

SPLITS = ("train", "validation", "test")


def names(root: Path, split: str, fraction: float = 0.2) -> set[str]:
    source = open_folder(str(root), split, fraction)
    paths = [Path(source[i]["name"]) for i in range(len(source))]
    return {str(path.relative_to(root)) for path in paths}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("[!.]*/[!.]*")}


def test_examples_have_the_bytes_and_the_label_of_their_class(folder):
    for split in SPLITS:
        source = open_folder(str(folder), split, 0.2)
        assert source.class_names == ("ant", "bee", "cat")
        paths = [source[i]["name"] for i in range(len(source))]
        assert paths == sorted(paths)  # whatever order the disk lists them in
        for i, path in enumerate(map(Path, paths)):
            assert source[i]["image"] == path.read_bytes()
            assert source.class_names[source[i]["label"]] == path.parent.name


def test_a_file_that_is_larger_than_any_picture_is_not_read(folder):
    source = open_folder(str(folder), "train", 0)
    path = Path(source[0]["name"])
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    with pytest.raises(CorruptImage, match=f"{path}: .* at most {MAX_BYTES:,} bytes"):
        source[0]


def test_one_folder_is_split_into_three_disjoint_parts(folder):
    parts = {split: names(folder, split) for split in SPLITS}
    assert set.union(*parts.values()) == files(folder)
    assert sum(map(len, parts.values())) == 120
    assert 4 <= len(parts["test"]) <= 24
    assert 10 <= len(parts["validation"]) <= 35


def test_splits_stay_when_files_are_added_or_the_fraction_changes(folder):
    before = {split: names(folder, split) for split in SPLITS}
    assert names(folder, "test", 0.5) == before["test"]
    assert names(folder, "validation", 0.1) < before["validation"]
    for path in list(folder.glob("*/*")):
        shutil.copy(path, path.with_stem("a new " + path.stem))
    (folder / "aardvark").mkdir()
    for i in range(20):
        shutil.copy(path, folder / "aardvark" / f"{i}.png")
    for split in SPLITS:
        old = {
            name
            for name in names(folder, split)
            if name in set().union(*before.values())
        }
        assert old == before[split]


def test_hidden_and_other_files_are_ignored(folder):
    before = {split: names(folder, split) for split in SPLITS}
    (folder / ".cache").mkdir()
    (folder / "ant" / ".hidden.png").touch()
    (folder / "ant" / "notes.txt").touch()
    (folder / "ant" / "directory.png").mkdir()
    (folder / "README").touch()
    assert {split: names(folder, split) for split in SPLITS} == before


def with_splits(folder: Path, *splits: str) -> Path:
    classes = list(folder.iterdir())
    root = folder / "root"
    for split in splits:
        for path in classes:
            shutil.copytree(path, root / split / path.name)
    return root


def test_train_and_test_folders(folder):
    root = with_splits(folder, "train", "test")
    assert names(root, "test") == {f"test/{name}" for name in files(root / "test")}
    train, validation = names(root, "train"), names(root, "validation")
    assert not train & validation
    assert train | validation == {f"train/{name}" for name in files(root / "train")}
    assert 10 <= len(validation) <= 40


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_folder_beside_test_is_used_instead_of_holding_out(folder, name):
    root = with_splits(folder, "train", "test", name)
    assert len(names(root, "train")) == 120
    assert len(names(root, "validation", 0.0)) == 120
    assert all(path.startswith(name) for path in names(root, "validation"))
    assert all(path.startswith("test/") for path in names(root, "test"))


def test_imagenets_usual_folders(folder):
    """train/WNID/*.JPEG and val/WNID/*.JPEG: val is what the papers test on."""
    for label, name in (
        ("n01440764", "ant"),
        ("n01443537", "bee"),
        ("n15075141", "cat"),
    ):
        (folder / name).rename(folder / label)
        for path in (folder / label).glob("*.jpg"):
            path.rename(path.with_suffix(".JPEG"))
    root = with_splits(folder, "train", "val")
    train, validation = names(root, "train"), names(root, "validation")
    assert train | validation == {f"train/{name}" for name in files(root / "train")}
    assert not train & validation and 10 <= len(validation) <= 40
    assert names(root, "test") == {f"val/{name}" for name in files(root / "val")}
    source = open_folder(str(root), "test", 0.2)
    assert source.class_names == ("n01440764", "n01443537", "n15075141")


def test_missing_test_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/root/test; expected"):
        names(with_splits(folder, "train"), "test")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere; expected .*CLASS/\*\.jpg"):
        open_folder(str(tmp_path / "nowhere"), "train", 0.1)


def test_folder_without_classes(tmp_path):
    (tmp_path / "1.jpg").touch()
    with pytest.raises(ValueError, match=r"no folders in .*a folder for each class"):
        open_folder(str(tmp_path), "train", 0.1)


def test_empty_class(folder):
    (folder / "dog").mkdir()
    with pytest.raises(ValueError, match=r"no pictures in .*dog;"):
        open_folder(str(folder), "train", 0.1)


@pytest.mark.parametrize("split", SPLITS)
def test_classes_that_differ(folder, split):
    root = with_splits(folder, "train", "test")
    (root / "test" / "bee").rename(root / "test" / "wasp")
    with pytest.raises(ValueError, match=r"train: bee; only in .*test: wasp"):
        open_folder(str(root), split, 0.1)


def test_held_out_part_without_pictures(folder):
    for path in folder.glob("*/[1-9]*"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"held out for validation; .*raise validation"
    ):
        open_folder(str(folder), "validation", 1e-9)
    for path in folder.glob("ant/*"):
        path.unlink()
    shutil.copy(next(folder.glob("bee/*.png")), folder / "ant" / "1.png")
    with pytest.raises(ValueError, match="every picture of ant"):
        open_folder(str(folder), "train", 1 - 1e-9)


@pytest.mark.parametrize("place", [".", "runs", "runs/mine", "cat"])
def test_a_run_among_the_pictures_is_refused(folder, place):
    with pytest.raises(
        ValueError, match="whose folders are the classes; give a --work"
    ):
        refuse_inside(str(folder), parse_path(folder / place))


def test_a_run_beside_the_pictures_is_not(folder, tmp_path_factory):
    refuse_inside(str(folder), parse_path(folder.parent / "runs"))
    refuse_inside(str(folder), parse_path("gs://runs/mine"))
    refuse_inside(str(folder), parse_path(folder / ".runs" / "mine"))
    (folder / "test").mkdir()  # a class, for there is no train/
    with pytest.raises(ValueError, match="is below"):
        refuse_inside(str(folder), parse_path(folder / "runs"))
    root = tmp_path_factory.mktemp("split")
    (root / "train" / "cat").mkdir(parents=True)
    refuse_inside(str(root), parse_path(root / "runs"))
    with pytest.raises(ValueError, match="is below"):
        refuse_inside(str(root), parse_path(root / "train" / "runs"))


def test_a_jpeg_has_one_of_several_endings(folder):
    for ending in ("jpe", "JFIF"):
        shutil.copy(
            next((folder / "ant").glob("*.jpg")), folder / "ant" / f"a.{ending}"
        )
    found = set().union(*(names(folder, split) for split in SPLITS))
    assert {"ant/a.jpe", "ant/a.JFIF"} <= found

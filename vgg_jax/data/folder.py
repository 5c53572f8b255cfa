"""This data set is the user's own pictures: a folder for each class, JPEG or PNG."""

import os
from pathlib import Path

from etils import epath

from vgg_jax.data.base import Example, hash_fraction, read_picture
from vgg_jax.files import is_in_bucket, parse_path, resolve

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
SPLITS = ("train", "test", "validation", "val")
# Of a folder without test/ this part is kept for eval.py.
TEST_FRACTION = 0.1

Files = dict[str, list[str]]  # class -> names of its files, both sorted


class Folder:
    """A source of the pictures below `root`; a file is read when it is asked for."""

    def __init__(self, root: Path, files: Files):
        self._root = root
        self.class_names = tuple(files)
        self._files = [
            (f"{name}/{file}", label)
            for label, (name, names) in enumerate(files.items())
            for file in names
        ]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        name, label = self._files[index]
        path = self._root / name
        return {"image": read_picture(path), "label": label, "name": str(path)}


def open_folder(data_dir: str, split: str, validation_fraction: float) -> Folder:
    """Opens the pictures of one split, classes in the order of their sorted names.

    Either `data_dir/train/CLASS/*` with `test`, `validation` or `val` beside it; or
    `data_dir/CLASS/*` alone, where test and validation are held out. Without `test`,
    `validation` or `val` is the test set, as ImageNet's is in the papers: it must not
    choose the checkpoint that it judges, so validation is held out of train. What is
    held out is decided by a hash of CLASS/FILE, so it stays when files are added.

    Raises:
        FileNotFoundError: the folder of the split is missing.
        ValueError: no classes, an empty class, classes of two splits that differ, or a
            held-out split that leaves a class or itself without pictures.
    """
    root = Path(data_dir).expanduser()
    if not (root / "train").is_dir():
        return _held_out(root, list_classes(root), split, validation_fraction, True)

    train = list_classes(root / "train")
    beside = [root / name for name in SPLITS[1:] if (root / name).is_dir()]
    for folder in beside:
        _same_classes(root / "train", train, folder, list_classes(folder))
    if split == "test":
        test = beside[0] if beside else root / "test"
        return Folder(test, list_classes(test))
    if len(beside) < 2:
        return _held_out(root / "train", train, split, validation_fraction, False)
    if split == "validation":
        return Folder(beside[1], list_classes(beside[1]))
    return Folder(root / "train", train)


def refuse_inside(data_dir: str, workdir: epath.Path) -> None:
    """Refuses a run among the pictures, of which it would become a class.

    Raises:
        ValueError: the workdir is below a folder of classes.
    """
    if is_in_bucket(workdir) or is_in_bucket(parse_path(data_dir)):
        return
    root, workdir = resolve(parse_path(data_dir)), resolve(workdir)
    splits = [root / name for name in SPLITS] if (root / "train").is_dir() else [root]
    for folder in splits:
        is_below = folder in workdir.parents
        if folder == workdir or (
            is_below and workdir.relative_to(folder).parts[0][0] != "."
        ):
            raise ValueError(
                f"{workdir} is below {folder}, whose folders are the classes; give a "
                "--workdir elsewhere"
            )


def list_classes(root: Path) -> Files:
    """Lists the classes below `root` and the pictures of each, without hidden names.

    Raises:
        FileNotFoundError: `root` is not a folder.
        ValueError: it has no classes, or a class has no pictures.
    """
    expected = (
        f"expected {root}/CLASS/*.jpg (or {', '.join(SUFFIXES[1:])}), a folder for "
        "each class"
    )
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; {expected}")
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
    if not names:
        raise ValueError(f"no folders in {root}; {expected}")
    files: Files = {}
    for name in names:
        with os.scandir(root / name) as entries:
            files[name] = sorted(
                e.name
                for e in entries
                if e.name.lower().endswith(SUFFIXES)
                and e.name[0] != "."
                and e.is_file()
            )
    empty = [name for name, pictures in files.items() if not pictures]
    if empty:
        folders = ", ".join(str(root / name) for name in empty)
        raise ValueError(f"no pictures in {folders}; {expected}")
    return files


def _held_out(
    root: Path, files: Files, split: str, validation_fraction: float, with_test: bool
) -> Folder:
    """Chooses the pictures of `split` when it has no folder of its own."""

    def split_of(name: str) -> str:
        if with_test and hash_fraction("test", name) < TEST_FRACTION:
            return "test"
        if hash_fraction("validation", name) < validation_fraction:
            return "validation"
        return "train"

    parts = {
        part: {
            name: [p for p in pictures if split_of(f"{name}/{p}") == part]
            for name, pictures in files.items()
        }
        for part in ("train", "validation", "test")
    }
    bare = [name for name, pictures in parts["train"].items() if not pictures]
    if bare:
        raise ValueError(
            f"every picture of {', '.join(bare)} in {root} is held out for validation "
            "or test; add pictures, or lower validation_fraction"
        )
    if not any(parts[split].values()):
        total = sum(map(len, files.values()))
        raise ValueError(
            f"none of the {total} pictures in {root} is held out for {split}; add "
            "pictures"
            + (", or raise validation_fraction" if split == "validation" else "")
        )
    return Folder(root, parts[split])


def _same_classes(root: Path, files: Files, other: Path, others: Files) -> None:
    if files.keys() == others.keys():
        return
    sides = [
        f"only in {folder}: {', '.join(sorted(a.keys() - b.keys())) or 'none'}"
        for folder, a, b in ((root, files, others), (other, others, files))
    ]
    raise ValueError(f"the classes differ: {'; '.join(sides)}; they must be the same")

"""This module reads CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in binary archives.

A file is a row of records. A record is one byte a label (CIFAR-100 has two, of which
the second, fine one is used), then 3072 bytes of the picture: red, green and blue, 1024
bytes each, row by row. Nothing is unpickled.
"""

import contextlib
import dataclasses
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from vgg_jax.data.prepare.writer import Contents, Member, Preparation

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An official archive of one of the two sets.

    Args:
        name: the name of the archive's file.
        size, md5: the file's size in bytes, and its checksum as published.
        folder: the folder that the archive unpacks to.
        files: the names of each split's files, and their number of pictures.
        labels: the number of bytes before a picture; the last one is its class.
        class_names: the name of the text file with a class name a line.
    """

    name: str
    size: int
    md5: str
    folder: str
    files: Mapping[str, Mapping[str, int]]
    labels: int
    class_names: str

    @contextlib.contextmanager
    def open(self, folder: Path | None, partial: bool) -> Iterator[Contents]:
        """Gives the pictures of the archive in a folder, or of what it unpacks to.

        Raises:
            FileNotFoundError: neither is in the folder.
            ValueError: it is not the official one or not whole. With `partial` any
                number of pictures and any checksum will do.
        """
        assert folder is not None  # nothing can be fetched
        text, splits = self._read(folder, partial)
        class_names = text.decode().split()
        pixels, members = {}, {}
        for split, data in splits.items():
            records = np.frombuffer(data, np.uint8).reshape(-1, self.labels + PIXELS)
            labels = records[:, self.labels - 1]
            if labels.max(initial=0) >= len(class_names):
                raise ValueError(
                    f"expected labels below {len(class_names)}, the number of names in "
                    f"{self.class_names}, found {labels.max()}: it is not the official "
                    f"{self.name}"
                )
            pixels[split] = records[:, self.labels :].reshape(-1, 3, SIDE, SIDE)
            members[split] = [
                Member(f"{split}_{number:05}", label, number, PIXELS)
                for number, label in enumerate(labels.tolist())
            ]

        def read(split: str, member: Member) -> bytes:
            rgb = pixels[split][member.offset].transpose(1, 2, 0)
            return cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()

        yield Contents(
            class_names=class_names,
            members=members,
            read=read,
            shape=(SIDE, SIDE, 3),
            name_feature="id",
        )

    def _read(self, folder: Path, partial: bool) -> tuple[bytes, dict[str, bytes]]:
        """Reads the names of the classes, and the records of each split."""
        archive, unpacked = folder / self.name, folder / self.folder
        if archive.is_file():
            if not partial:
                self._validate(archive)
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    return self._read_files(
                        archive,
                        lambda name: _extract(tar, f"{self.folder}/{name}"),
                        partial,
                    )
            except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
                raise ValueError(
                    f"{archive} is not a whole archive ({error}); download it again"
                ) from error
        if unpacked.is_dir():
            return self._read_files(
                unpacked, lambda name: (unpacked / name).read_bytes(), partial
            )
        raise FileNotFoundError(
            f"{folder} has neither {self.name} nor {self.folder}; download the binary "
            "version from https://www.cs.toronto.edu/~kriz/cifar.html and name its "
            "folder with --from"
        )

    def _validate(self, archive: Path) -> None:
        size = archive.stat().st_size
        if size == self.size:
            with open(archive, "rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() == self.md5:
                    return
        raise ValueError(
            f"expected {self.size:,} bytes of md5 {self.md5} in {archive}, found "
            + (f"{size:,} bytes" if size != self.size else "another md5")
            + ": not the official file, or not all of it; download it again, or add "
            "--partial to go on with what it holds"
        )

    def _read_files(
        self, source: Path, read: Callable[[str], bytes], partial: bool
    ) -> tuple[bytes, dict[str, bytes]]:
        def read_file(name: str) -> bytes:
            try:
                return read(name)
            except (FileNotFoundError, KeyError) as error:
                raise ValueError(
                    f"{source} has no {self.folder}/{name}: it is not the official one"
                ) from error

        def read_records(name: str, pictures: int) -> bytes:
            data, record = read_file(name), self.labels + PIXELS
            is_whole = partial or len(data) == pictures * record
            if len(data) % record or not is_whole:
                raise ValueError(
                    f"expected {pictures:,} pictures of {record:,} bytes each in "
                    f"{name} of {source}, found {len(data):,} bytes; download it again"
                )
            return data

        splits = {
            split: b"".join(read_records(*file) for file in files.items())
            for split, files in self.files.items()
        }
        return read_file(self.class_names), splits


def _extract(tar: tarfile.TarFile, name: str) -> bytes:
    """Reads a file of a tar archive; raises KeyError where none has this name."""
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _preparation(name: str, title: str, archive: Archive) -> Preparation:
    return Preparation(
        name=name,
        version="3.0.2",
        title=title,
        files=(archive.name,),
        open=archive.open,
    )


CIFAR10 = _preparation(
    "cifar10",
    "CIFAR-10",
    Archive(
        name="cifar-10-binary.tar.gz",
        size=170_052_171,
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        files={
            "train": {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
            "test": {"test_batch.bin": 10_000},
        },
        labels=1,
        class_names="batches.meta.txt",
    ),
)
CIFAR100 = _preparation(
    "cifar100",
    "CIFAR-100",
    Archive(
        name="cifar-100-binary.tar.gz",
        size=168_513_733,
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        files={"train": {"train.bin": 50_000}, "test": {"test.bin": 10_000}},
        labels=2,
        class_names="fine_label_names.txt",
    ),
)

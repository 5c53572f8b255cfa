"""This module reads, and fetches, the four idx files of Fashion-MNIST."""

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from vgg_jax.data.prepare.writer import Contents, Member, Preparation

# sha256 of the unpacked content: Debian's files differ from the official ones in the
# gzip header. The smallest first, so that a dead network is found out soon.
CONTENT_SHA256 = {
    "t10k-labels-idx1-ubyte": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
    "train-labels-idx1-ubyte": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "train-images-idx3-ubyte": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"  # below / or an unpacked package
OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
NETWORK_TIMEOUT = 10  # seconds of silence
LIST_TIMEOUT = 60  # seconds in all, for the mirror's list of packages
DOWNLOAD_TIMEOUT = 600  # seconds in all, for 31 MB


CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PREFIXES = {"train": "train", "test": "t10k"}  # of the names of the files


class Unavailable(Exception):
    """A way of getting the files does not work here; the message says why."""


@contextlib.contextmanager
def open_fashion_mnist(folder: Path | None, partial: bool) -> Iterator[Contents]:
    """Gives the 60,000 "train" and 10,000 "test" pictures, gray 28x28.

    Args:
        folder: holds the four files; None finds or fetches them.
        partial: has no meaning here; only the published files are accepted.

    Raises:
        FileNotFoundError: no way to get the four files.
        ValueError: `folder` does not hold them.
    """
    with tempfile.TemporaryDirectory() as workdir:
        if folder is None:
            folder = find_folder(Path(workdir))
        try:
            images, labels = (
                {
                    split: read_idx(folder, f"{prefix}-{kind}-ubyte")
                    for split, prefix in PREFIXES.items()
                }
                for kind in ("images-idx3", "labels-idx1")
            )
        except Unavailable as error:
            raise ValueError(str(error)) from error

    def read(split: str, member: Member) -> bytes:
        return cv2.imencode(".png", images[split][member.offset])[1].tobytes()

    yield Contents(
        class_names=CLASS_NAMES,
        members={
            split: [
                Member(str(number), label, number, images[split][number].size)
                for number, label in enumerate(labels[split].tolist())
            ]
            for split in PREFIXES
        },
        read=read,
        shape=(28, 28, 1),
    )


def report_progress(text: str) -> None:
    """Prints a line of progress."""
    print(f"Fashion-MNIST: {text}", file=sys.stderr, flush=True)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads images uint8 [N, 28, 28] or labels uint8 [N] from `name`, gzipped or not.

    Raises:
        Unavailable: the file is missing or not the published one.
    """
    path = folder / f"{name}.gz"
    if not path.is_file():
        path = folder / name
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise Unavailable(f"cannot read {path}: {error}") from error
    if hashlib.sha256(data).hexdigest() != CONTENT_SHA256[name]:
        raise Unavailable(f"{path} is not the published file: its checksum differs")
    # Two zeros, the type (8 is uint8), the number of axes, and a 4-byte size for each.
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def find_folder(workdir: Path) -> Path:
    """Finds a folder with the four files: a copy on disk, Debian's, the official one.

    Debian's package comes before the official download because apt-get is either not
    there, which shows at once, or most likely works: also where the package mirrors
    are the only network.

    Raises:
        FileNotFoundError: no way worked; says why, and the command to type.
    """
    reasons = []
    for way in (_from_disk, _from_debian, _from_official):
        try:
            folder = way(workdir)
            validate_folder(folder)
            return folder
        except Unavailable as error:
            reasons.append(str(error))
    raise FileNotFoundError(
        "no way to get Fashion-MNIST:\n  "
        + "\n  ".join(reasons)
        + "\nPut its four files, "
        + ", ".join(f"{name}.gz" for name in CONTENT_SHA256)
        + ", into a folder DIR and type\n  "
        "python -m vgg_jax.data.prepare fashion_mnist --from DIR"
    )


def validate_folder(folder: Path) -> None:
    """Checks that all four files are in a folder, and are the published ones.

    Raises:
        Unavailable: a file is missing or another one.
    """
    for name in CONTENT_SHA256:
        read_idx(folder, name)


def _from_disk(workdir: Path) -> Path:
    folder = Path("/") / DEBIAN_FOLDER
    if not folder.is_dir():
        raise Unavailable(f"no folder {folder}")
    report_progress(f"reading {folder}")
    return folder


def _from_debian(workdir: Path) -> Path:
    """Downloads and unpacks the package; installs nothing and needs no root."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool} here to fetch {DEBIAN_PACKAGE} with")
    report_progress(f"fetching the Debian package {DEBIAN_PACKAGE} (31 MB)")
    folder = workdir / "debian"
    for part in ("lists/partial", "cache/archives/partial", "unpacked"):
        (folder / part).mkdir(parents=True)
    quick = [
        *("-o", f"Acquire::http::Timeout={NETWORK_TIMEOUT}"),
        *("-o", f"Acquire::https::Timeout={NETWORK_TIMEOUT}"),
        *("-o", "Acquire::Retries=0"),
        *("-o", "APT::Sandbox::User=root"),  # else root's apt cannot write here
    ]
    try:
        _run(["apt-get", *quick, "download", DEBIAN_PACKAGE], folder, DOWNLOAD_TIMEOUT)
    except Unavailable as error:
        if not any(sign in str(error) for sign in ("Unable to locate", "404")):
            raise  # the network, not the machine's package lists
        # They are missing or old: fetch some of our own.
        report_progress("asking the package mirror for its list first")
        private = [
            *("-o", f"Dir::State::Lists={folder}/lists"),
            *("-o", f"Dir::Cache={folder}/cache"),
            *("-o", "Acquire::Languages=none"),
        ]
        # One broken repository fails the update, though the package may be found.
        with contextlib.suppress(Unavailable):
            _run(["apt-get", *quick, *private, "update"], folder, LIST_TIMEOUT)
        command = ["apt-get", *quick, *private, "download", DEBIAN_PACKAGE]
        _run(command, folder, DOWNLOAD_TIMEOUT)
    (package,) = folder.glob("*.deb")
    _run(["dpkg", "-x", str(package), "unpacked"], folder, DOWNLOAD_TIMEOUT)
    return folder / "unpacked" / DEBIAN_FOLDER


def _run(command: Sequence[str], folder: Path, timeout: float) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took over {timeout:.0f} s") from error
    if done.returncode:
        errors = [x for x in done.stderr.splitlines() if x.startswith(("E:", "dpkg"))]
        message = " ".join(errors) or f"exit status {done.returncode}"
        raise Unavailable(f"{command[0]} for {DEBIAN_PACKAGE} failed: {message}")


def _from_official(workdir: Path) -> Path:
    report_progress(f"downloading from {OFFICIAL_URL} (31 MB)")
    folder = workdir / "official"
    folder.mkdir()
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    for name in CONTENT_SHA256:
        url = f"{OFFICIAL_URL}{name}.gz"
        try:
            with (
                urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as response,
                open(folder / f"{name}.gz", "wb") as file,
            ):
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    if time.monotonic() > deadline:
                        raise Unavailable(f"{url} took over {DOWNLOAD_TIMEOUT} s")
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"cannot download {url}: {error}") from error
    return folder


FASHION_MNIST = Preparation(
    name="fashion_mnist",
    version="3.0.1",
    title="Fashion-MNIST",
    files=tuple(f"{name}.gz" for name in CONTENT_SHA256),
    open=open_fashion_mnist,
    fetches=True,
)

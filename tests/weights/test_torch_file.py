import copy
import hashlib
import io
import json
import pathlib
import pickle
import pickletools
import re
import tarfile
import zipfile

import jax
import numpy as np
import pytest

from vgg_jax.models import create_model
from vgg_jax.weights import formats, load_weights
from vgg_jax.weights.contents import OIHW, Contents

FILES = pathlib.Path(__file__).with_name("files")
# What torch.load finds in each file: by names, type, shape and a digest of the values.
OF_TORCH = json.loads((FILES / "torch.json").read_text())
VARIABLES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def array_of(contents: Contents, name: str) -> np.ndarray:
    """The array of a file that PyTorch calls so."""
    layer, _, last = name.rpartition(".")
    arrays = contents.layers[layer]
    if last == "weight":
        (last,) = arrays.keys() & {"kernel", "scale"}
    return arrays[VARIABLES.get(last, last)]


def summary(array: np.ndarray) -> list[object]:
    values = np.ascontiguousarray(array.astype(np.float64)).tobytes()
    digest = hashlib.blake2b(values, digest_size=8).hexdigest()
    return [str(array.dtype), list(array.shape), digest]


def damaged(folder: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refuse(path: pathlib.Path, *words: str) -> str:
    """Reads a file, which must be refused by one line with these words."""
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as error:
        formats.read(str(path))
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("name", OF_TORCH)
def test_what_pytorch_reads_is_read(name: str) -> None:
    contents = formats.read(str(FILES / name))
    assert contents.axes == OIHW and not contents.others
    expected = {
        tensor: summary
        for tensor, summary in OF_TORCH[name].items()
        if not tensor.endswith("num_batches_tracked")
    }
    assert {n: summary(array_of(contents, n)) for n in expected} == expected
    assert sum(map(len, contents.layers.values())) == len(expected)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn_checkpoint", "lpips"])
def test_the_files_have_storages_in_another_order_than_tensors(name: str) -> None:
    with open(FILES / f"{name}_legacy.pth", "rb") as file:
        for _ in range(3):
            pickle.load(file)
        texts = [text for _, text, _ in pickletools.genops(file)]
        keys = pickle.load(file)
    met = [text for text in dict.fromkeys(texts) if text in keys]
    assert sorted(met) == keys != met


@pytest.mark.parametrize(
    ("file", "network"),
    [("vgg11_zip.pth", "vgg11"), ("vgg11_bn_checkpoint_legacy.pth", "vgg11_bn")],
)
def test_a_network_takes_them(file: str, network: str) -> None:
    model = create_model(
        network, num_classes=None, width=1 / 64, rngs=jax.random.key(0)
    )
    loaded = load_weights(model, FILES / file)
    assert loaded.naming == "torchvision" and not loaded.kept and not loaded.unused
    last = 25 if network.endswith("bn") else 18
    layer = f"{'module.' if network.endswith('bn') else ''}features.{last}"
    kernel = array_of(formats.read(str(FILES / file)), f"{layer}.weight")
    np.testing.assert_array_equal(
        model.conv5_2.kernel[...], kernel.transpose(2, 3, 1, 0)
    )


def test_arrays_stay_in_the_file() -> None:
    contents = formats.read(str(FILES / "mixture_legacy.pth"))
    shared, whole = (array_of(contents, f"{n}.weight") for n in ("shared", "whole"))
    assert np.shares_memory(shared, whole)
    assert not shared.flags.owndata and not shared.flags.writeable


@pytest.mark.parametrize("name", ["module_legacy.pth", "module_zip.pth"])
def test_a_pickled_module_is_refused_by_the_name_of_its_class(name: str) -> None:
    refuse(FILES / name, "'torch.nn.modules.linear.Linear'", "state_dict")


def test_a_torchscript_archive_is_refused() -> None:
    refuse(FILES / "torchscript.pt", "TorchScript", "torch.save its state_dict()")


def test_a_tar_file_of_the_first_versions_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    refuse(path, "tar file", "torch.save its state_dict()")


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vgg11_legacy.pth", 50, "damaged or not whole: get it anew"),
        ("vgg11_legacy.pth", 3000, "damaged or not whole: get it anew"),
        ("vgg11_legacy.pth", -1, "the file ends at byte 11,952"),
        ("vgg11_zip.pth", 50, "damaged or not whole: get it anew"),
        ("vgg11_zip.pth", -1, "damaged or not whole: get it anew"),
    ],
)
def test_a_file_that_is_not_whole(
    tmp_path: pathlib.Path, name: str, size: int, words: str
) -> None:
    refuse(damaged(tmp_path, name, (FILES / name).read_bytes()[:size]), words)


def test_a_changed_byte_of_a_zip_file(tmp_path: pathlib.Path) -> None:
    data = bytearray((FILES / "little_zip.pth").read_bytes())
    place = data.index(np.float32([1, 1]).tobytes())
    data[place] ^= 1
    refuse(damaged(tmp_path, "little.pth", data), "/data/0' has changed")


def test_a_compressed_zip_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "small.pth"
    with (
        zipfile.ZipFile(FILES / "little_zip.pth") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refuse(path, "compressed", "zip -0")


def test_entries_that_share_bytes(tmp_path: pathlib.Path) -> None:
    """Many of them would take the time of a file many times as large."""
    path = tmp_path / "shared.pth"
    path.write_bytes((FILES / "little_zip.pth").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        (stored,) = (e for e in archive.infolist() if e.filename.endswith("/data/0"))
        again = copy.copy(stored)
        again.filename = f"{stored.filename}0"
        archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    refuse(path, "/data/00'", "has bytes of another entry")
    nested = bytearray((FILES / "little_zip.pth").read_bytes())
    place = nested.rindex(b"PK\1\2") + 42  # the offset of the last entry
    with zipfile.ZipFile(FILES / "little_zip.pth") as archive:
        offset = archive.infolist()[-2].header_offset + 30  # within the one before
    nested[place : place + 4] = offset.to_bytes(4, "little")
    refuse(damaged(tmp_path, "nested.pth", nested), "has bytes of another entry")


def test_another_zip_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, weight=np.zeros(3))
    refuse(path, "one data.pkl, got 0")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"K\6Nt", b"K\7Nt", id="another number of elements"),
        pytest.param(b"\6" + bytes(7), b"\5" + bytes(7), id="and another behind it"),
        pytest.param(b"QK\0", b"QK\1", id="an offset beyond the end"),
        pytest.param(b"QK\0", b"QJ\xff\xff\xff\xff", id="an offset below zero"),
        pytest.param(b"K\3K\1\x86", b"K\4K\1\x86", id="a stride beyond the end"),
        pytest.param(b"K\3K\1\x86", b"K\0K\0\x86", id="the same elements again"),
        pytest.param(b"K\6Nt", b"K\6)t", id="a part of another storage"),
        pytest.param(b"_rebuild_tensor", b"_rebuild_qtensor", id="another function"),
    ],
)
def test_a_tensor_that_is_not_in_its_storage(
    tmp_path: pathlib.Path, old: bytes, new: bytes
) -> None:
    data = (FILES / "first_version_legacy.pth").read_bytes()
    assert old in data
    if new.startswith(b"K\0K\0"):  # more elements than there are
        data = data.replace(b"K\2K\3\x86", b"K\3K\3\x86")
    refuse(damaged(tmp_path, "version_1.pth", data.replace(old, new)))

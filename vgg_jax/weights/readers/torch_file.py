"""This module reads the files that `torch.save` writes, without PyTorch.

There are two kinds. The older is a stream of pickles, the last of which lists the keys
of the storages, whose bytes follow in the order of that list; torchvision's VGGs are of
this kind. The newer, since PyTorch 1.6, is a zip file with a pickle and a file for each
storage. In both the pickle refers to storages by their keys, and a tensor is a part of
a storage.
"""

import dataclasses
import io
import mmap
from collections.abc import Mapping
from typing import IO, cast

import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from vgg_jax.weights.contents import OIHW, Contents, Refusal, group
from vgg_jax.weights.readers.mapped import (
    map_array,
    map_file,
    naming_damage,
    view_of,
)
from vgg_jax.weights.readers.pickled import (
    Global,
    Rebuilder,
    are_sizes,
    flatten,
    is_size,
    make_ordered_dict,
    unpickle,
)
from vgg_jax.weights.readers.zipped import entries_of, entry_bytes

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older kind
PROTOCOL = 1001  # the second
SAVE_ANEW = "load it in PyTorch and torch.save its state_dict()"

DTYPES: Mapping[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}

# Where a checkpoint of a training has its network.
NETWORKS = ("state_dict", "model_state_dict", "model")


@dataclasses.dataclass
class Storage:
    """A row of numbers; `values` is set when its place in the file is known."""

    dtype: np.dtype
    size: int
    values: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A part of a storage: its first element, shape, and steps along the axes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns the elements, which stay where they are.

        Raises:
            ValueError: they are not all in the storage.
        """
        values = self.storage.values
        if values is None:
            raise Refusal("the file lacks a storage that a tensor is a part of")
        count, last = 1, self.offset
        for extent, stride in zip(self.shape, self.strides, strict=True):
            count *= extent
            last += (extent - 1) * stride
        # More elements than the storage's would repeat some of them.
        if count and (count > values.size or last >= values.size):
            raise Refusal(
                f"expected a tensor of shape {self.shape}, strides {self.strides} and "
                f"offset {self.offset} to be a part of a storage of {values.size:,}"
            )
        if not count:
            return np.zeros(self.shape, values.dtype)
        return np.lib.stride_tricks.as_strided(
            values[self.offset :],
            self.shape,
            [stride * values.itemsize for stride in self.strides],
            writeable=False,
        )


def read(path: Path) -> Contents:
    """Reads the state dict of a file of PyTorch's, alone or within a checkpoint.

    Raises:
        ValueError: the file is damaged, or holds other things than tensors; the message
            begins with the path and says what to do.
    """
    with naming_damage(path):
        file = map_file(path)
        view = view_of(file)
        if bytes(view[:4]) == b"PK\x03\x04":
            tree = _read_zip(file, view)
        elif bytes(view[257:262]) == b"ustar":
            raise Refusal(
                f"a tar file, as PyTorch wrote before its version 0.1.10; {SAVE_ANEW}"
            )
        else:
            tree = _read_stream(file, view)
        tensors = flatten(_network(tree), Tensor, ".")
        if not tensors:
            raise Refusal(f"expected a state_dict, got no tensors by name; {SAVE_ANEW}")
        layers, others = group({name: t.array() for name, t in tensors.items()})
    return Contents(format="torch", layers=layers, axes=OIHW, others=others)


def _network(tree: object) -> object:
    """Returns the state dict in a checkpoint of a training, or the tree itself."""
    for name in NETWORKS:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            return tree[name]
    return tree


def _read_stream(file: mmap.mmap | io.BytesIO, view: memoryview) -> object:
    """Reads the older kind, where all is one stream."""
    stream = cast(IO[bytes], file)
    for expected in (MAGIC, PROTOCOL):
        if unpickle(stream, {}) != expected:
            raise Refusal("expected the two numbers that a file of PyTorch begins with")
    unpickle(stream, {})  # about the machine: values are little-endian whatever it says
    storages = _Storages()
    tree = unpickle(stream, REBUILDERS, storages.load)
    keys = unpickle(stream, {})
    start = stream.tell()
    if not isinstance(keys, list) or len(keys) != len(storages):
        raise Refusal("expected a list of the keys of the storages; it is damaged")
    for key in keys:
        storage = storages[key]
        (size,) = map_array(view, start, (1,), np.dtype("<i8"))
        if size != storage.size:
            raise Refusal(
                f"expected {storage.size:,} elements of storage {key!r}, got {size:,}"
            )
        storage.values = map_array(view, start + 8, (storage.size,), storage.dtype)
        start += 8 + storage.values.nbytes
    return tree


def _read_zip(file: mmap.mmap | io.BytesIO, view: memoryview) -> object:
    """Reads the newer kind, a zip file in which nothing is compressed."""
    entries = entries_of(file, view)
    pickles = [name for name in entries if f"/{name}".endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refusal(
            f"expected a zip file of PyTorch's with one data.pkl, got {len(pickles)}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise Refusal(
            "a TorchScript archive, which is a program; torch.jit.load it in PyTorch "
            "and torch.save its state_dict()"
        )
    storages = _Storages()
    stream = io.BytesIO(entry_bytes(view, entries, pickles[0]))
    tree = unpickle(stream, REBUILDERS, storages.load)
    order = f"{folder}byteorder"
    is_big = order in entries and bytes(entry_bytes(view, entries, order)) == b"big"
    for key, storage in storages.items():
        data = entry_bytes(view, entries, f"{folder}data/{key}")
        values = map_array(data, 0, (storage.size,), storage.dtype)
        if is_big:
            values = values.view(f"u{values.itemsize}").byteswap().view(values.dtype)
        storage.values = values
    return tree


class _Storages(dict[str, Storage]):
    """The storages of a file by their keys."""

    def load(self, identity: object) -> Storage:
        """Makes the storage that a persistent id of the pickle stands for.

        Args:
            identity: `("storage", class, key, device, number of elements)`, in the
                older kind of file with a sixth that is None.
        """
        match identity:
            case ("storage", Global(name), str(key), str(), size, *rest) if (
                name in DTYPES and is_size(size) and rest in ([], [None])
            ):
                storage = self.setdefault(key, Storage(DTYPES[name], size))
                if (storage.dtype, storage.size) == (DTYPES[name], size):
                    return storage
        raise Refusal(
            "expected a storage of numbers, of one type and size, as a persistent id; "
            f"the file is damaged, or {SAVE_ANEW}"
        )


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> Tensor:
    """Stands in for functions of `torch._utils` that also take what training needs."""
    if (
        not isinstance(storage, Storage)
        or not is_size(offset)
        or not (are_sizes(shape) and are_sizes(strides))
    ):
        raise Refusal("expected a storage, an offset, a shape and strides of a tensor")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: object, *_: object) -> object:
    """Stands in for `torch._utils._rebuild_parameter`: a parameter is its tensor."""
    return tensor


REBUILDERS: Mapping[str, Rebuilder] = {
    "collections.OrderedDict": make_ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **dict.fromkeys(DTYPES),
}

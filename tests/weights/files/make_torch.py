"""Writes the small files of PyTorch and safetensors here, with PyTorch 2.13.

    python tests/weights/files/make_torch.py

It needs torch, numpy and safetensors, in an environment of its own. `torch.json` says
what `torch.load` finds in the files.
"""

import collections
import hashlib
import io
import json
import pathlib
import pickle
import pickletools
import zipfile

import numpy as np
import safetensors.torch
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
LEGACY = {"_use_new_zipfile_serialization": False}
# VGG-11 (A) and VGG-11 with batch normalization at a 64th of their widths.
WIDTHS = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")


def vgg(is_normalized: bool) -> nn.Module:
    """Makes the trunk of torchvision's VGG-11; numbers of its layers are the names."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        if is_normalized:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        channels = width
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    for buffer in network.buffers():
        if buffer.ndim:
            buffer.data = torch.rand(buffer.shape) + 0.5
    return network


def mixture() -> dict[str, torch.Tensor]:
    """Makes tensors of many types, and parts of others in every way."""
    numbers = torch.arange(24, dtype=torch.float32)
    return {
        "float32.weight": numbers.reshape(2, 3, 4) / 7,
        "float64.weight": torch.linspace(0, 1, 5, dtype=torch.float64),
        "float16.weight": torch.linspace(0, 1, 5).half(),
        "bfloat16.weight": torch.linspace(0, 1, 5).bfloat16(),
        "int64.weight": torch.arange(-2, 3),
        "int32.weight": torch.arange(-2, 3, dtype=torch.int32),
        "int16.weight": torch.arange(-2, 3, dtype=torch.int16),
        "int8.weight": torch.arange(-2, 3, dtype=torch.int8),
        "uint8.weight": torch.arange(250, 255, dtype=torch.uint8),
        "bool.weight": torch.tensor([True, False]),
        "scalar.weight": torch.tensor(3.5),
        "empty.weight": torch.zeros(0, 3),
        "whole.weight": numbers,
        "shared.weight": numbers,
        "tail.weight": numbers[20:],
        "transposed.weight": numbers.reshape(4, 6).t(),
        "steps.weight": numbers.reshape(4, 6)[1::2, ::3],
        "parameter.weight": nn.Parameter(torch.ones(2, 2)),
    }


def heads() -> dict[str, torch.Tensor]:
    """Makes what the files of LPIPS have: a vector for each of five layers."""
    return {
        f"lin{k}.model.1.weight": torch.rand(1, channels, 1, 1)
        for k, channels in enumerate((64, 128, 256, 512, 512))
    }


def save_out_of_order(arrays: object, name: str) -> None:
    """Saves in the older kind of file with storages in another order than the names."""
    while True:
        file = io.BytesIO()
        torch.save(arrays, file, **LEGACY)
        file.seek(0)
        for _ in range(3):
            pickle.load(file)
        texts = [text for _, text, _ in pickletools.genops(file)]
        keys = pickle.load(file)
        if keys != [text for text in dict.fromkeys(texts) if text in keys]:
            (HERE / name).write_bytes(file.getvalue())
            return
        # The keys are addresses in memory: others, then.
        arrays = torch.utils._pytree.tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) else x, arrays
        )


def save_first_version(name: str) -> None:
    """Saves as PyTorch 0.3 did: tensors by `_rebuild_tensor`, without hooks."""
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)

    class Tensor:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor, (Storage(), 0, (2, 3), (3, 1))

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "94", "cuda:0", 6, None)
            return None

    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, file, 2)
    Pickler(file, 2).dump(collections.OrderedDict([("layer.weight", Tensor())]))
    pickle.dump(["94"], file, 2)
    file.write((6).to_bytes(8, "little") + tensor.numpy().tobytes())
    (HERE / name).write_bytes(file.getvalue())


def make_big_endian(source: str, name: str) -> None:
    """Writes a file as a machine with the other order of bytes would."""
    with (
        zipfile.ZipFile(HERE / source) as old,
        zipfile.ZipFile(HERE / name, "w") as new,
    ):
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/byteorder"):
                data = b"big"
            if "/data/" in entry.filename:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(entry.filename, data)


def summary(tensor: torch.Tensor) -> tuple[object, ...]:
    """Returns a tensor's type, shape, and a digest of its values in 64 bits."""
    values = tensor.detach().double().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(values, digest_size=8).hexdigest()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest


def main() -> None:
    torch.manual_seed(0)
    plain, normalized = vgg(False).state_dict(), vgg(True).state_dict()
    checkpoint = {
        "epoch": 3,
        "best": 0.25,
        "state_dict": collections.OrderedDict(
            (f"module.{name}", array) for name, array in normalized.items()
        ),
        "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}, "lr": [0.1]},
    }
    save_out_of_order(plain, "vgg11_legacy.pth")
    save_out_of_order(checkpoint, "vgg11_bn_checkpoint_legacy.pth")
    save_out_of_order(heads(), "lpips_legacy.pth")
    torch.save({"model": plain}, HERE / "vgg11_zip.pth")
    torch.save(mixture(), HERE / "mixture_legacy.pth", **LEGACY)
    torch.save(mixture(), HERE / "mixture_zip.pth")
    torch.save({"layer.weight": torch.ones(2)}, HERE / "little_zip.pth")
    make_big_endian("little_zip.pth", "big_endian_zip.pth")
    torch.serialization.set_crc32_options(False)
    torch.save({"layer.weight": torch.ones(2)}, HERE / "without_checksums_zip.pth")
    torch.serialization.set_crc32_options(True)
    save_first_version("first_version_legacy.pth")
    safetensors.torch.save_file(
        plain,
        HERE / "vgg11.safetensors",
        {"format": "pt", "lineage": "torchvision", "class_names": '["cat", "dog"]'},
    )
    safetensors.torch.save_file(
        {
            name: array.clone().contiguous()
            for name, array in mixture().items()
            if array.numel()
        },
        HERE / "mixture.safetensors",
    )
    # What is refused: a module, and a program.
    torch.save(nn.Linear(1, 1), HERE / "module_zip.pth")
    torch.save(nn.Linear(1, 1), HERE / "module_legacy.pth", **LEGACY)
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(HERE / "torchscript.pt"))

    values: dict[str, dict[str, object]] = {}
    for path in sorted(HERE.glob("*.pth")):
        if path.name.startswith("module"):
            continue
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found.get("model", found))
        values[path.name] = {name: summary(array) for name, array in found.items()}
    for path in sorted(HERE.glob("*.safetensors")):
        found = safetensors.torch.load_file(path)
        values[path.name] = {name: summary(array) for name, array in found.items()}
    lines = (f'"{name}": {json.dumps(arrays)}' for name, arrays in values.items())
    (HERE / "torch.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

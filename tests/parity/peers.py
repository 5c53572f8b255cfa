"""Networks of other libraries: how they are made, written, read and run."""

import abc
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from tests.parity.ours import Answers
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Dropout
from vgg_jax.weights import save_pretrained, save_weights

os.environ["KERAS_BACKEND"] = "torch"
import keras

COMPARED = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Linear)


@contextlib.contextmanager
def keep_outputs(network: nn.Module) -> Iterator[list[np.ndarray]]:
    """Gives a list that takes the map after each layer, [N, h, w, C], as it runs."""
    outputs: list[np.ndarray] = []

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        array = output.detach().numpy().copy()  # a ReLU may overwrite it in place
        if array.ndim == 2:
            array = array[:, :, None, None]
        outputs.append(array.transpose(0, 2, 3, 1))

    hooks = [
        module.register_forward_hook(keep)
        for module in network.modules()
        if isinstance(module, COMPARED)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class Peer(abc.ABC):
    """A network of another library.

    Args:
        network: the library's network.
        writer: the function of the library that writes files of weights.
    """

    def __init__(self, network, writer: str):
        self.network = network
        self.writer = writer

    @abc.abstractmethod
    def arrays(self) -> Iterator[tuple[str, np.ndarray, Callable[[np.ndarray], None]]]:
        """Yields each array with its name and what sets it."""

    def draw(self, seed: int, grid: int | None = None) -> None:
        """Gives every array random values with which signals neither die nor explode.

        Args:
            seed: the seed.
            grid: rounds values to multiples of one over this, which compress well.
        """
        generator = np.random.default_rng(seed)
        for name, array, assign in self.arrays():
            values = generator.standard_normal(array.shape, np.float32)
            if array.ndim > 1:
                values *= np.sqrt(2 / self._inputs(array.shape))
            elif "var" in name or self._is_scale(name):
                values = 1 + 0.1 * np.clip(values, -3, 3)
            else:
                values *= 0.1
            assign(values if grid is None else np.round(values * grid) / grid)

    @abc.abstractmethod
    def _inputs(self, shape: tuple[int, ...]) -> int:
        """Returns how many values enter an output of a kernel."""

    @abc.abstractmethod
    def _is_scale(self, name: str) -> bool:
        """Returns whether a vector of this name is a scale of batch normalization."""

    @abc.abstractmethod
    def save(self, folder: Path) -> Path:
        """Writes the weights by the library's own writer; returns the file."""

    @abc.abstractmethod
    def answer(
        self, images: np.ndarray, score_weights: np.ndarray, model: ConvNet
    ) -> Answers:
        """Runs the network; see `ours.answer`, whose maps are named by `model`."""

    @abc.abstractmethod
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits alone."""

    @abc.abstractmethod
    def take(self, model: ConvNet, name: str, folder: Path) -> str:
        """Fills the network by its library's reader with what `vgg_jax` writes.

        Args:
            model: the network whose weights are written.
            name: its name in `vgg_jax`.
            folder: where the file goes.

        Returns:
            What wrote and what read.
        """


class Torch(Peer):
    """A network of torchvision, or one that has the same modules."""

    def __init__(self, network: nn.Module, *, is_legacy: bool = False):
        kind = "old stream" if is_legacy else "zip"
        super().__init__(network.eval(), f"torch.save, {kind}")
        self._is_legacy = is_legacy
        self._batch_norms = {
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }

    def arrays(self):
        for name, tensor in self.network.state_dict().items():
            if tensor.ndim:
                yield (
                    name,
                    tensor.numpy(),
                    lambda values, tensor=tensor: tensor.copy_(torch.tensor(values)),
                )

    def _inputs(self, shape):
        return int(np.prod(shape[1:]))

    def _is_scale(self, name):
        layer, _, variable = name.rpartition(".")
        return layer in self._batch_norms and variable == "weight"

    def save(self, folder):
        path = folder / "peer.pth"
        torch.save(
            self.network.state_dict(),
            path,
            _use_new_zipfile_serialization=not self._is_legacy,
        )
        return path

    def answer(self, images, score_weights, model):
        tensor = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_()
        with keep_outputs(self.network) as outputs:
            logits = self.network(tensor)
        kernel = self.network.features[0].weight
        gradients = torch.autograd.grad(
            (logits * torch.tensor(score_weights)).sum(), (tensor, kernel)
        )
        rows = [row.name for row in model.layers if not isinstance(row, Dropout)]
        return Answers(
            dict(zip(rows, outputs, strict=True)),
            logits.detach().numpy(),
            gradients[0].numpy().transpose(0, 2, 3, 1),
            gradients[1].numpy().transpose(2, 3, 1, 0),
        )

    @torch.no_grad()
    def logits(self, images):
        return self.network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()

    def take(self, model, name, folder):
        path = folder / "ours.safetensors"
        save_weights(model, path, names="torchvision")
        self.network.load_state_dict(safetensors.torch.load_file(path))
        return "save_weights, load_state_dict"


class Timm(Torch):
    """A network of timm."""

    def __init__(self, network: nn.Module):
        super().__init__(network)
        self.writer = "timm save_for_hf, safetensors"

    def save(self, folder):
        timm.models.save_for_hf(self.network, folder, safe_serialization=True)
        return folder / "model.safetensors"

    def take(self, model, name, folder):
        save_pretrained(model, folder / "ours", name)
        self.network = timm.create_model(
            f"local-dir:{folder / 'ours'}", pretrained=True
        ).eval()
        return "save_pretrained, timm.create_model"


class Keras(Peer):
    """A network of Keras, with PyTorch as its backend."""

    def __init__(self, network: "keras.Model"):
        super().__init__(network, "Keras 3 save_weights")

    def arrays(self):
        for variable in self.network.weights:
            yield variable.path, variable.numpy(), variable.assign

    def _inputs(self, shape):
        return int(np.prod(shape[:-1]))

    def _is_scale(self, name):
        return name.endswith("/gamma")

    def save(self, folder):
        path = folder / "peer.weights.h5"
        self.network.save_weights(path)
        return path

    def answer(self, images, score_weights, model):
        kinds = (keras.layers.Conv2D, keras.layers.MaxPooling2D, keras.layers.Dense)
        layers = [layer for layer in self.network.layers if isinstance(layer, kinds)]
        # Its convolutions and its first two matrices have their ReLU within.
        rows = [r.name for r in model.layers if r.name.startswith(("relu", "pool"))]
        rows.append(model.layers[-1].name)
        network = keras.Model(self.network.inputs, [layer.output for layer in layers])
        tensor = torch.tensor(images).requires_grad_()
        outputs = network(tensor, training=False)
        kernel = layers[0].kernel.value
        gradients = torch.autograd.grad(
            (outputs[-1] * torch.tensor(score_weights)).sum(), (tensor, kernel)
        )
        maps = [output.detach().numpy() for output in outputs]
        return Answers(
            {
                row: array if array.ndim == 4 else array[:, None, None]
                for row, array in zip(rows, maps, strict=True)
            },
            maps[-1],
            *(gradient.numpy() for gradient in gradients),
        )

    @torch.no_grad()
    def logits(self, images):
        return self.network(torch.tensor(images), training=False).numpy()

    def take(self, model, name, folder):
        path = folder / "ours.weights.h5"
        save_weights(model, path)
        self.network.load_weights(path)
        return "save_weights, Keras load_weights"


VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")


def of_torchvision(name: str) -> Torch:
    """Makes torchvision's network; plain ones are saved as its published files are."""
    network = torchvision.models.get_model(name, weights=None, init_weights=False)
    return Torch(network, is_legacy=not name.endswith("_bn"))


def of_timm(name: str) -> Timm:
    """Makes timm's network."""
    return Timm(timm.create_model(name))


def of_keras(name: str) -> Keras:
    """Makes the network of `keras.applications`, which gives logits."""
    make = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}
    return Keras(make[name](weights=None, classifier_activation=None))


# Every network of ours that a peer has, and what makes the peer's.
PEERS: Sequence[tuple[str, str, Callable[[str], Peer]]] = (
    *(("torchvision", f"{n}{bn}", of_torchvision) for bn in ("", "_bn") for n in VGGS),
    *(("timm", f"{name}{bn}", of_timm) for bn in ("", "_bn") for name in VGGS),
    *(("Keras", name, of_keras) for name in ("vgg16", "vgg19")),
)

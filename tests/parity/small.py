"""Writes the small files of other libraries that `make test` compares with.

  python -m tests.parity.small

Each is a VGG-11 at a 32nd of its widths that the library's own layers make up, written
by the library's own writer; beside it are a few of its answers to one image of 64
pixels, where fc6 sees a map of 2 x 2: its inputs' order then matters.
"""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import timm
import torchvision
from torch import nn

from tests.parity.peers import Keras, Peer, Timm, Torch, keras
from vgg_jax.models import ConvNet
from vgg_jax.weights.load import abstract_network

ARCHIVE = Path(__file__).parents[1] / "weights" / "files" / "parity.zip"
# `create_model` makes the same network of these.
OPTIONS = {"width": 1 / 32, "fc_features": 512, "fc_kernel": 2, "num_classes": 5}
WIDTHS = [2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"]
SIZE, SIDE, HIDDEN, CLASSES = 64, 2, 16, 5
STRIDE = 4  # of the pixels whose gradients are kept
KEPT = ("pool1", "pool2", "pool3", "pool4", "pool5", "relu6", "relu7")


def of_torchvision(*, batch_norm: bool) -> Torch:
    """Makes torchvision's network, whose classifier has fixed widths: another one."""
    network = torchvision.models.VGG(
        torchvision.models.vgg.make_layers(WIDTHS, batch_norm=batch_norm), CLASSES
    )
    network.avgpool = nn.AdaptiveAvgPool2d((SIDE, SIDE))
    network.classifier = nn.Sequential(
        nn.Linear(16 * SIDE * SIDE, HIDDEN),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(HIDDEN, CLASSES),
    )
    return Torch(network, is_legacy=batch_norm)


def of_timm() -> Timm:
    """Makes timm's network, whose wide layers have fixed sizes: others."""
    network = timm.models.vgg.VGG(WIDTHS, CLASSES)
    network.pre_logits = timm.models.vgg.ConvMlp(16, HIDDEN, kernel_size=SIDE)
    network.head = timm.layers.ClassifierHead(HIDDEN, CLASSES)
    network.pretrained_cfg = timm.get_pretrained_cfg("vgg11").to_dict()
    return Timm(network)


def of_keras() -> Keras:
    """Makes the network of `keras.applications`, which has none of these widths."""
    inputs = x = keras.Input((SIZE, SIZE, 3))
    stage, number = 1, 0
    for width in WIDTHS:
        if width == "M":
            x = keras.layers.MaxPooling2D(name=f"block{stage}_pool")(x)
            stage, number = stage + 1, 0
            continue
        number += 1
        x = keras.layers.Conv2D(
            width,
            3,
            padding="same",
            activation="relu",
            name=f"block{stage}_conv{number}",
        )(x)
    x = keras.layers.Flatten()(x)
    for name in ("fc1", "fc2"):
        x = keras.layers.Dense(HIDDEN, activation="relu", name=name)(x)
    return Keras(
        keras.Model(inputs, keras.layers.Dense(CLASSES, name="predictions")(x))
    )


def stored(peer: Peer, seed: int, model: ConvNet) -> tuple[str, bytes, bytes]:
    """Returns the name's ending and the bytes of the peer's file, and its answers."""
    peer.draw(seed, grid=64)
    generator = np.random.default_rng(seed)
    images = np.round(generator.standard_normal((1, SIZE, SIZE, 3)) * 8) / 8
    images = images.astype(np.float32)
    score_weights = generator.standard_normal((1, CLASSES), np.float32)
    answers = peer.answer(images, score_weights, model)
    file = io.BytesIO()
    np.savez(
        file,
        images=images,
        score_weights=score_weights,
        logits=answers.logits,
        image_gradient=answers.image_gradient[:, ::STRIDE, ::STRIDE],
        kernel_gradient=answers.kernel_gradient,
        **{name: answers.maps[name] for name in KEPT},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = peer.save(Path(folder))
        ending = path.name.partition(".")[2]
        return ending, path.read_bytes(), file.getvalue()


def main() -> None:
    """Writes the archive."""
    peers: dict[str, Peer] = {
        "torchvision_vgg11": of_torchvision(batch_norm=False),
        "torchvision_vgg11_bn": of_torchvision(batch_norm=True),
        "timm_vgg11": of_timm(),
        "keras_vgg11": of_keras(),
    }
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as files:
        for seed, (name, peer) in enumerate(peers.items()):
            network = name.partition("_")[2]
            model = abstract_network(network, **OPTIONS)
            ending, weights, answers = stored(peer, seed, model)
            files.writestr(f"{name}.{ending}", weights)
            files.writestr(f"{name}.npz", answers)


if __name__ == "__main__":
    main()

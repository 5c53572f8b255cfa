"""Writes `keras.zip`, the files of Keras that the tests read, with Keras itself.

In an environment of its own, with keras, keras-hub, tf_keras (which is Keras 2) and
tensorflow:

    KERAS_BACKEND=tensorflow python tests/weights/files/write_keras.py
"""

import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping
from types import ModuleType

import keras
import keras_hub
import numpy as np
import tf_keras
from values import CLASSES, CONVOLUTIONS, EPSILONS, HIDDEN, Layers, vgg11

ARCHIVE = pathlib.Path(__file__).with_name("keras.zip")
POOLED = ("1_1", "2_1", "3_2", "4_2", "5_2")
HEAD = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
VARIABLES = ("kernel", "bias")
BATCH_NORM = ("scale", "bias", "mean", "var")


def network(
    keras: ModuleType,
    layers: Layers,
    *,
    named: bool = True,
    epsilons: Mapping[str, float] | None = None,
):
    """The network of keras.applications, as narrow as `layers` are.

    Args:
        keras: Keras 3 or, as tf_keras, Keras 2.
        layers: the values of its rows.
        named: whether layers have names, not those that Keras counts.
        epsilons: of rows of batch normalization whose epsilon is not Keras's usual one.
    """
    inputs = x = keras.Input((64, 64, 3))
    for row, arrays in layers.items():
        place = row[-3:]
        if row.startswith("bn"):
            name = f"block{place[0]}_bn{place[2]}" if named else None
            options = {"epsilon": (epsilons or {}).get(row, 1e-3), "name": name}
            x = keras.layers.BatchNormalization(**options)(x)
        elif row.startswith("conv"):
            name = f"block{place[0]}_conv{place[2]}" if named else None
            features = arrays["bias"].size
            x = keras.layers.Conv2D(features, 3, padding="same", name=name)(x)
        else:
            if row == "fc6":
                x = keras.layers.Flatten()(x)
            name = HEAD[row] if named else None
            x = keras.layers.Dense(arrays["bias"].size, name=name)(x)
        is_block_over = row in (f"conv{place}", f"bn{place}") and place in POOLED
        if is_block_over and (row.startswith("bn") or f"bn{place}" not in layers):
            x = keras.layers.MaxPooling2D()(x)
    model = keras.Model(inputs, x)
    weighted = [layer for layer in model.layers if layer.weights]
    for layer, arrays in zip(weighted, layers.values(), strict=True):
        set_weights(layer, arrays)
    return model


def set_weights(layer, arrays: dict[str, np.ndarray]) -> None:
    names = BATCH_NORM if "mean" in arrays else VARIABLES
    shapes = [weight.shape for weight in layer.weights]
    layer.set_weights(
        [arrays[name].reshape(shape) for name, shape in zip(names, shapes, strict=True)]
    )


def write_keras_2() -> None:
    network(tf_keras, vgg11()).save_weights("keras2.h5")
    network(tf_keras, vgg11(batch_norm=True, side=None), named=False).save_weights(
        "keras2_bn_notop.h5"
    )
    trunk = network(tf_keras, vgg11(side=None))
    head = [tf_keras.layers.Flatten(), tf_keras.layers.Dense(2)]
    whole = tf_keras.Sequential([trunk, *head])
    whole.compile(tf_keras.optimizers.SGD(momentum=0.9), "mse")
    whole.fit(np.zeros((1, 64, 64, 3)), np.zeros((1, 2)), verbose=0)
    for layer, arrays in zip(
        [layer for layer in trunk.layers if layer.weights],
        vgg11(side=None).values(),
        strict=True,
    ):
        set_weights(layer, arrays)
    whole.save("keras2_whole_nested.h5")


def write_keras_3() -> None:
    network(keras, vgg11()).save_weights("keras3.weights.h5")
    network(keras, vgg11(batch_norm=True), named=False).save_weights(
        "keras3_bn.weights.h5"
    )
    network(keras, vgg11()).save("keras3_whole.h5")
    whole = network(keras, vgg11(batch_norm=True), epsilons=EPSILONS)
    whole.save("keras3_bn.keras")
    whole.save("keras3_bn_whole.h5")
    keras.config.set_dtype_policy("bfloat16")
    network(keras, vgg11()).save_weights("keras3_bfloat16.weights.h5")
    keras.config.set_dtype_policy("float32")


def write_keras_hub() -> None:
    """The two files of a preset; KerasHub's fc6 is always 7x7."""
    backbone = keras_hub.models.VGGBackbone([1, 1, 2, 2, 2], (1, 2, 4, 8, 8))
    task = keras_hub.models.VGGImageClassifier(
        backbone, num_classes=CLASSES, pooling_hidden_dim=HIDDEN
    )
    rows = vgg11(side=7)
    convolutions = [layer for layer in backbone.layers if layer.weights]
    head = [layer for layer in task.head.layers if layer.weights]
    for layer, arrays in zip((*convolutions, *head), rows.values(), strict=True):
        set_weights(layer, arrays)
    assert len(convolutions) == len(CONVOLUTIONS)
    backbone.save_weights("keras_hub_model.weights.h5")
    task.save_weights("keras_hub_task.weights.h5")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        os.chdir(folder)
        write_keras_2()
        write_keras_3()
        write_keras_hub()
        for name in sorted(os.listdir()):
            archive.write(name)

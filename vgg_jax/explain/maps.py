"""This module says where in images a network sees a class.

The functions take normalized images and are pure: they work under `jax.jit`, `jax.grad`
and `jax.vmap`, on images of any size. The network evaluates, whatever its modules say:
without dropout, and with the running statistics of batch normalization.

`GradCam` is the head that gives `grad_cam` of pixels 0-255, through `Network.run`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vgg_jax.console import did_you_mean
from vgg_jax.inference.forward import Extras
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Conv
from vgg_jax.models.network import class_scores


def grad_cam(
    model: ConvNet, images: jax.Array, labels: jax.Array | int, layer: str
) -> jax.Array:
    """Computes Grad-CAM of any layer: [N, H, W, C] -> float32 [N, h, w], at least 0.

    arXiv:1610.02391, section 3: each channel of the layer's map is weighted by the
    mean over space of the class score's gradient, and what is left of the sum above 0
    is the map. The score is that before soft-max, averaged over space on large images.

    Args:
        model: a classifier.
        images: NHWC, normalized as the weights expect.
        labels: the class of each image, int [N], or one class of all.
        layer: the name of the row whose map, [N, h, w, channels], is weighted.

    Raises:
        ValueError: the network is a backbone or has no such layer, or images that do
            not fit it.
    """
    _validate_classifier(model)
    names = [row.name for row in model.layers]
    if layer not in names:
        raise ValueError(f"no layer {layer!r}: {did_you_mean(layer, names)}")
    end = names.index(layer) + 1
    before, after = model.layers[:end], model.layers[end:]
    maps = model.run(images, before, train=False)

    def sum_of_scores(maps: jax.Array) -> jax.Array:
        score_map = model.run(maps, after, train=False) if after else maps
        return _of_class(class_scores(score_map), labels).sum()

    gradient = jax.grad(sum_of_scores)(maps).astype(jnp.float32)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((weights * maps.astype(jnp.float32)).sum(axis=-1))


def class_activation_map(
    model: ConvNet, images: jax.Array, labels: jax.Array | int
) -> jax.Array:
    """Computes the class activation map: [N, H, W, C] -> float32 [N, h, w].

    arXiv:1512.04150, section 2: a network whose last convolution is averaged over
    space, as Network in Network's is (arXiv:1312.4400, section 3.2), weights the map
    before it by the weights of the class. It is the class score map without the bias,
    and before the last ReLU where there is one (`nin_tutorial`).

    Args:
        model: a classifier.
        images: NHWC, normalized as the weights expect.
        labels: the class of each image, int [N], or one class of all.

    Raises:
        ValueError: the network is a backbone, or images that do not fit it.
    """
    _validate_classifier(model)
    last = [row.name for row in model.layers if isinstance(row, Conv)][-1]
    maps = model.features(images, (last,), train=False)[last].astype(jnp.float32)
    return _of_class(maps - getattr(model, last).bias[...], labels)


def class_score_map(
    model: ConvNet, images: jax.Array, labels: jax.Array | int
) -> jax.Array:
    """Computes the dense score map of a class: [N, H, W, C] -> float32 [N, h, w].

    Section 3.2 of arXiv:1409.1556; its mean over space is the score of the class.

    Args:
        model: a classifier.
        images: NHWC, normalized as the weights expect.
        labels: the class of each image, int [N], or one class of all.

    Raises:
        ValueError: the network is a backbone, or images that do not fit it.
    """
    return _of_class(model.score_map(images, train=False), labels)


def _of_class(values: jax.Array, labels: jax.Array | int) -> jax.Array:
    """Takes one class of each image: [N, ..., classes] -> [N, ...]."""
    labels = jnp.broadcast_to(jnp.asarray(labels), values.shape[:1])
    index = labels.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.take_along_axis(values, index, axis=-1)[..., 0]


def _validate_classifier(model: ConvNet) -> None:
    """Refuses a backbone, which has no classes to explain."""
    if model.num_classes is None:
        raise ValueError(
            "expected a classifier, and num_classes=None made a backbone; create the "
            "model with num_classes"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradCam:
    """The head that gives `grad_cam` of a layer for the classes "labels", int [N].

    Images fill their arrays.
    """

    extras: ClassVar[tuple[str, ...]] = ("labels",)
    layer: str

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> jax.Array:
        """Computes the maps: normalized [N, H, W, C] -> float32 [N, h, w]."""
        return grad_cam(model, images, extras["labels"], self.layer)

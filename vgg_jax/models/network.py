"""A convolutional network: rows of layers, run one after another."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Initializer

from vgg_jax.kernels.cpu import conv_general_dilated
from vgg_jax.models import layers as rows
from vgg_jax.console import did_you_mean

_init = jax.nn.initializers

# Section 3.1: "paper" is its text (variance 1e-2), "caffe_001" the authors' Caffe files
# (deviation 1e-2), "glorot" what its footnote found to work without pre-training.
INITS: dict[str, Initializer] = {
    "paper": _init.normal(0.1),
    "caffe_001": _init.normal(0.01),
    "glorot": _init.glorot_uniform(),
    "he": _init.he_normal(),
}


def _as_matrix(init: Initializer) -> Initializer:
    """The initialiser of a fully-connected layer, by the fans of its matrix.

    A convolution's fan-out counts every position of the window.
    """

    def init_as_matrix(key: Any, shape: Any, *args: Any) -> jax.Array:
        matrix = (int(np.prod(shape[:-1])), shape[-1])
        return init(key, matrix, *args).reshape(shape)

    return init_as_matrix


def class_scores(score_map: jax.Array) -> jax.Array:
    """The mean over space (section 3.2): [N, h, w, classes] -> float32 [N, classes]."""
    return score_map.astype(jnp.float32).mean(axis=(1, 2))


class ConvNet(nnx.Module):
    """Runs `layers`; every parameter and every intermediate has its row's name.

    Args:
        layers: the rows, input first.
        num_classes: channels of the score map; None for a backbone, whose output is the
            last row's map.
        in_channels: channels of the images.
        init: a key of `INITS`; biases start at zero.
        dtype: of the computation; parameters are float32.
        rngs: "params" makes the weights.
        keep_rngs: keep the "dropout" stream inside, for `nnx.bridge.to_linen`, whose
            `apply(..., rngs=...)` cannot hand one to a call.
    """

    def __init__(
        self,
        layers: Sequence[rows.Layer],
        *,
        num_classes: int | None,
        in_channels: int,
        init: str,
        dtype: Any,
        rngs: nnx.Rngs,
        keep_rngs: bool = False,
    ):
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}: {did_you_mean(init, INITS)}")
        for option, count in (
            ("num_classes", num_classes),
            ("in_channels", in_channels),
        ):
            if count is not None and count < 1:
                raise ValueError(f"expected {option} of at least 1, got {count}")
        self.layers = tuple(layers)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dtype = jnp.dtype(dtype)
        channels = in_channels
        for layer in self.layers:
            match layer:
                case rows.Conv():
                    dense = isinstance(layer, rows.FullyConnected)
                    module: nnx.Module = nnx.Conv(
                        channels,
                        layer.features,
                        (layer.kernel, layer.kernel),
                        strides=layer.stride,
                        padding=layer.padding,
                        kernel_init=_as_matrix(INITS[init]) if dense else INITS[init],
                        dtype=self.dtype,
                        conv_general_dilated=conv_general_dilated,
                        rngs=rngs,
                    )
                    channels = layer.features
                case rows.BatchNorm():
                    # torchvision's constants (its momentum is one minus ours).
                    module = nnx.BatchNorm(
                        channels,
                        momentum=0.9,
                        epsilon=1e-5,
                        dtype=self.dtype,
                        rngs=rngs,
                    )
                case rows.Dropout():
                    kept = rngs if keep_rngs and "dropout" in rngs else None
                    module = nnx.Dropout(layer.rate, rngs=kept)
                case _:
                    continue
            setattr(self, layer.name, module)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Class scores: [N, H, W, in_channels] -> float32 [N, num_classes].

        Before soft-max. At the training size the score map is one cell; on larger
        images it is averaged over space (section 3.2). A backbone returns its map,
        [N, h, w, C].

        Args:
            images: NHWC, normalised as the weights expect.
            train: dropout on, batch statistics from this batch.
            rngs: a "dropout" stream, needed when `train` and the network has dropout;
                or keys [N], one an image, whose dropout then does not depend on the
                others.

        Raises:
            ValueError: wrong rank or channels, or images too small for the network.
        """
        x = self.run(images, self.layers, train=train, rngs=rngs)
        return x if self.num_classes is None else class_scores(x)

    def score_map(
        self, images: jax.Array, *, sizes: jax.Array | None = None
    ) -> jax.Array:
        """The dense class score map of section 3.2, before soft-max and spatial mean.

        [N, H, W, in_channels] -> float32 [N, h, w, num_classes].

        Args:
            images: NHWC, normalised as the weights expect.
            sizes: int32 [N, 2], height and width of each image where they share a
                batch, each in the upper left corner; what is right of it and below does
                not matter. Its map is that of the image alone, of the size that
                `layers.output_sizes` says, and zero outside. None for images that fill
                their arrays. A size that is too small for the network is not noticed.

        Raises:
            ValueError: as `__call__`, and for a backbone, which has no classes.
        """
        if self.num_classes is None:
            raise ValueError(
                "score_map needs a classifier, and num_classes=None made a backbone; "
                "create the model with num_classes, or call model(images) for its map"
            )
        x = self.run(images, self.layers, sizes=sizes).astype(jnp.float32)
        if sizes is None:
            return x
        return rows.fill_outside(x, rows.output_sizes(self.layers, sizes))

    def features(self, images: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
        """Named intermediates, [N, H, W, in_channels] -> {name: [N, h, w, C]}.

        Nothing past the deepest name is computed.

        Raises:
            ValueError: an unknown name, a string for names, or images that do not fit.
        """
        if isinstance(names, str):
            raise ValueError(f"expected names, such as ({names!r},), got a string")
        known = [layer.name for layer in self.layers]
        for name in names:
            if name not in known:
                raise ValueError(f"no layer {name!r}: {did_you_mean(name, known)}")
        found: dict[str, jax.Array] = {}
        if names:
            deepest = max(known.index(name) for name in names)
            self.run(images, self.layers[: deepest + 1], collect=found)
        return {name: found[name] for name in names}

    def run(
        self,
        x: jax.Array,
        layers: tuple[rows.Layer, ...],
        *,
        sizes: jax.Array | None = None,
        train: bool = False,
        rngs: nnx.Rngs | jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Consecutive rows of the network: [N, H, W, C] -> [N, h, w, features].

        Args:
            x: images, or the map that the row before `layers` leaves.
            layers: a part of `self.layers`.
            sizes: of the images in their batch, as `score_map`, or of those maps.
            train, rngs: as `__call__`.
            collect: takes each row's map, by the row's name.

        Raises:
            ValueError: as `__call__`.
        """
        if layers[0] == self.layers[0]:
            self._check(x, layers)
        x = x.astype(self.dtype)
        for layer in layers:
            # Compilers and profilers show an operation under its layer's name.
            with jax.named_scope(layer.name):
                match layer:
                    case rows.Conv():
                        if sizes is not None and layer.padding:
                            x = rows.fill_outside(x, sizes)
                        x = getattr(self, layer.name)(x)
                    case rows.BatchNorm():
                        x = getattr(self, layer.name)(x, use_running_average=not train)
                    case rows.Dropout():
                        x = self._drop(layer, x, train, rngs)
                    case rows.LocalResponseNorm(_, size, alpha, beta, k):
                        x = rows.local_response_norm(
                            x, size=size, alpha=alpha, beta=beta, k=k
                        )
                    case rows.Relu():
                        x = nnx.relu(x)
                    case rows.MaxPool():
                        x = rows.max_pool(x, layer, sizes)
                    case rows.AveragePool():
                        x = rows.average_pool(x, layer, sizes)
                    case _:
                        raise TypeError(f"ConvNet has no rule for {layer}")
            if collect is not None:
                collect[layer.name] = x
            if sizes is not None:
                sizes = layer.output_size(sizes)
        return x

    def _drop(
        self,
        layer: rows.Dropout,
        x: jax.Array,
        train: bool,
        rngs: nnx.Rngs | jax.Array | None,
    ) -> jax.Array:
        drop = getattr(self, layer.name)
        if not (train and isinstance(rngs, jax.Array)):
            return drop(x, deterministic=not train, rngs=rngs)
        number = self.layers.index(layer)

        def drop_image(image: jax.Array, key: jax.Array) -> jax.Array:
            return drop(
                image, deterministic=False, rngs=jax.random.fold_in(key, number)
            )

        return jax.vmap(drop_image)(x, rngs)

    def _check(self, images: jax.Array, layers: tuple[rows.Layer, ...]) -> None:
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(
                f"expected images [N, H, W, {self.in_channels}], got "
                f"{list(images.shape)}"
            )
        rows.check_size(layers, *images.shape[1:3])

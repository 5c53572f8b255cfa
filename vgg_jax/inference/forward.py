"""Runs the forward pass outside of training: from pixels to what a head gives.

`apply` is the only function that does it, whatever the options of its compiler.
Validation, every protocol, tiles, heat maps, descriptors and localization differ in the
head that they hand it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vgg_jax.compilation import onednn_options
from vgg_jax.console import did_you_mean
from vgg_jax.distributed import replicate
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import Layer, inside, output_sizes
from vgg_jax.preprocessing import Preprocessing

Images = np.ndarray | jax.Array
# Further arrays that a head takes, one row an image.
Extras = Mapping[str, Any]
CompilerOptions = tuple[tuple[str, bool | str], ...]  # hashable

# Where the soft-max stands relative to the spatial mean, which the paper leaves open.
AVERAGINGS = ("score_map", "posteriors")


class Head(Protocol):
    """What is made of a network's layers: a hashable value, so that programs are kept.

    `extras` names the further arrays that it takes.
    """

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the further arrays, one row an image, that the head takes."""
        ...

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> Any:
        """Makes a tree of arrays, N rows each, of normalized images [N, H, W, C].

        `sizes`, int32 [N, 2], are the heights and widths of images that share a batch,
        each in the upper left corner; None where images fill their arrays.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapHead:
    """A head in two steps: a map of the image, then what the map is reduced to.

    The first step also works on an image in tiles. With `flip` the result is averaged
    over the image and its mirror image.
    """

    extras: ClassVar[tuple[str, ...]] = ()
    flip: bool = False

    def layers(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Returns the rows of the network that make the map; by default all of them."""
        return layers

    def map(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None
    ) -> jax.Array:
        """Makes the map, by default the score map.

        [N, H, W, C] -> float32 [N, h, w, features].
        """
        return model.score_map(images, sizes=sizes)

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> Any:
        """Reduces maps [N, h, w, features] of images of these sizes to the result.

        By default the result is the maps as they are.
        """
        return maps

    def __call__(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None, extras: Extras
    ) -> Any:
        """Takes both steps, for images [N, H, W, C]; see `Head`."""

        def run(images: jax.Array) -> Any:
            maps = self.map(model, images, sizes)
            return self.reduce(maps, model.layers, sizes, extras)

        if not self.flip:
            return run(images)
        return mean_of(run(images), run(mirror_images(images, sizes)))

    def cells(
        self, layers: tuple[Layer, ...], sizes: jax.Array | None
    ) -> jax.Array | None:
        """Returns the heights and widths of the images' maps, int32 [N, 2]."""
        return None if sizes is None else output_sizes(self.layers(layers), sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreMap(MapHead):
    """The head that gives the dense class score map of section 3.2.

    It is zero outside of each image's own map.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapOf(MapHead):
    """The head that gives the map of another head before that head reduces it."""

    head: MapHead

    def layers(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Returns the rows of the network that make the other head's map."""
        return self.head.layers(layers)

    def map(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None
    ) -> jax.Array:
        """Makes the other head's map: [N, H, W, C] -> float32 [N, h, w, features]."""
        return self.head.map(model, images, sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posteriors(MapHead):
    """The head that gives soft-max posteriors (section 3.2).

    [N * views, H, W, C] -> [N, num_classes].

    Args:
        averaging: "score_map", the mean of the scores over space, then soft-max; or
            "posteriors", the soft-max of each cell, then their mean.
        flip: whether to average them with those of the images mirrored left to right.
        views: how many consecutive rows are views of one image, and are averaged.

    Raises:
        ValueError: the averaging is unknown; the message names the nearest.
    """

    averaging: str = "score_map"
    flip: bool = True
    views: int = 1

    def __post_init__(self) -> None:
        """Refuses an unknown averaging."""
        validate_averaging(self.averaging)

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> jax.Array:
        """Makes one distribution an image of the score maps of its views."""
        cells = self.cells(layers, sizes)
        posteriors = spatial_posteriors(maps, self.averaging, cells)
        return posteriors.reshape(-1, self.views, posteriors.shape[-1]).mean(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled(MapHead):
    """The head that gives a layer's activations, averaged over space: [N, features].

    Args:
        layer: the name of the layer.
        flip: whether to average over each image and its mirror image.
    """

    layer: str
    flip: bool = True

    def layers(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Returns the rows of the network up to the layer."""
        return layers[: [row.name for row in layers].index(self.layer) + 1]

    def map(
        self, model: ConvNet, images: jax.Array, sizes: jax.Array | None
    ) -> jax.Array:
        """Makes the layer's map, [N, H, W, C] -> float32 [N, h, w, features]."""
        rows = self.layers(model.layers)
        return model.run(images, rows, sizes=sizes).astype(jnp.float32)

    def reduce(
        self,
        maps: jax.Array,
        layers: tuple[Layer, ...],
        sizes: jax.Array | None,
        extras: Extras,
    ) -> jax.Array:
        """Averages each map over the image's own cells."""
        cells = self.cells(layers, sizes)
        is_inside = None if cells is None else inside(maps.shape, cells)
        return maps.mean(axis=(1, 2), where=is_inside)


_STATIC = ("graphdef", "normalization", "head", "devices")


@functools.partial(jax.jit, static_argnames=_STATIC)
def apply(
    variables: tuple[Any, ...],
    images: jax.Array,
    sizes: jax.Array | None,
    extras: Extras,
    *,
    graphdef: nnx.GraphDef,
    normalization: Preprocessing,
    head: Head,
    devices: int,
) -> Any:
    """Runs a network, without dropout, on pixels 0-255, as far as the head goes.

    Args:
        variables: the trees that make a model of `graphdef`, as `nnx.split` gives them.
        images: uint8 [N, H, W, C].
        sizes: int32 [N, 2], the heights and widths of images that share a batch; None
            where they fill it.
        extras: the arrays that the head names.
        graphdef, normalization, head: hashable values; each combination is a program.
        devices: how many devices share the images.

    Returns:
        What the head gives.
    """
    model: ConvNet = nnx.merge(graphdef, *variables)
    model.eval()
    model.devices = devices
    return head(model, normalization(images), sizes, extras)


@functools.cache
def _apply_with(options: CompilerOptions) -> Any:
    """Returns `apply`, compiled with these options."""
    if not options:
        return apply
    jit = functools.partial(jax.jit, static_argnames=_STATIC)
    return jit(apply.__wrapped__, compiler_options=dict(options))  # type: ignore[attr-defined]


@functools.partial(jax.jit, static_argnames=("head", "layers"))
def reduce_map(
    maps: jax.Array,
    sizes: jax.Array,
    extras: Extras,
    *,
    head: MapHead,
    layers: tuple[Layer, ...],
) -> Any:
    """Takes the second step of a head alone, for maps that were made tile by tile."""
    return head.reduce(maps, layers, sizes, extras)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to be run on pixels.

    Args:
        graphdef, variables: the model, as `nnx.split` gives it.
        normalization: what is done to pixels 0-255 first.
        layers: the model's rows.
        options: names and values of options for the compiler.
    """

    graphdef: nnx.GraphDef
    variables: tuple[Any, ...]
    normalization: Preprocessing
    layers: tuple[Layer, ...]
    options: CompilerOptions = ()

    @classmethod
    def from_model(cls, model: ConvNet, normalization: Preprocessing) -> "Network":
        """Makes a network of a model and of what is done to its pixels.

        Raises:
            ValueError: the normalization is for another number of channels.
        """
        if normalization.channels != model.in_channels:
            raise ValueError(
                f"expected {model.in_channels} values of mean and of std, one a "
                f"channel, got {normalization.channels}; pass those that the network "
                "was trained with"
            )
        graphdef, *variables = nnx.split(model)
        return cls(graphdef, tuple(variables), normalization, model.layers)

    @property
    def channels(self) -> int:
        """The number of channels of the network's images."""
        return self.normalization.channels

    @property
    def dtype(self) -> jnp.dtype:
        """The type that the network computes in."""
        model: ConvNet = nnx.merge(self.graphdef, *self.variables)
        return model.dtype

    def place(self, mesh: Mesh) -> "Network":
        """Returns the network with its variables on every device of a mesh.

        Variables that are on all of these devices stay as they are, whole or in parts.
        """
        devices = set(mesh.devices.flat)
        arrays = jax.tree.leaves(self.variables)
        if all(isinstance(a, jax.Array) and a.devices() == devices for a in arrays):
            return self
        return dataclasses.replace(self, variables=replicate(mesh, self.variables))

    def with_onednn(self) -> "Network":
        """Returns it with oneDNN's convolutions, see `compilation.onednn_options`.

        A network with modules in the place of rows stays as it is: oneDNN may compute
        their activations wrongly.
        """
        model: ConvNet = nnx.merge(self.graphdef, *self.variables)
        if model.replaced:
            return self
        options = onednn_options(model.dtype.name)
        return dataclasses.replace(self, options=tuple(options.items()))

    def run(
        self,
        head: Head,
        images: Images,
        sizes: Images | None = None,
        extras: Extras | None = None,
    ) -> Any:
        """Runs the network on images as far as the head goes, see `apply`."""
        arrays: Any = (self.variables, images, sizes, extras or {})
        return _apply_with(self.options)(*arrays, **self._static(head, images))

    def lower(
        self,
        head: Head,
        images: jax.ShapeDtypeStruct,
        sizes: jax.ShapeDtypeStruct | None = None,
        extras: Extras | None = None,
    ) -> jax.stages.Lowered:
        """Lowers the program of `run` for arrays of these shapes; compiles nothing."""
        arguments = (self.variables, images, sizes, extras or {})
        program = _apply_with(self.options)
        return program.lower(*arguments, **self._static(head, images))

    def _static(
        self, head: Head, images: Images | jax.ShapeDtypeStruct
    ) -> dict[str, Any]:
        sharding = getattr(images, "sharding", None)  # which an array of NumPy has not
        return {
            "graphdef": self.graphdef,
            "normalization": self.normalization,
            "head": head,
            "devices": 1 if sharding is None else sharding.num_devices,
        }


def validate_averaging(averaging: str) -> None:
    """Checks that an averaging is one of `AVERAGINGS`.

    Raises:
        ValueError: the averaging is unknown; the message names the nearest.
    """
    if averaging not in AVERAGINGS:
        raise ValueError(
            f"unknown averaging {averaging!r}: {did_you_mean(averaging, AVERAGINGS)}"
        )


def spatial_posteriors(
    scores: jax.Array, averaging: str, sizes: jax.Array | None = None
) -> jax.Array:
    """Makes one distribution of each class score map: [N, h, w, C] -> [N, C].

    A map with a score that is not finite has no distribution: its row is NaN.

    Args:
        scores: the maps.
        averaging: "score_map", the mean of the scores over space, then soft-max; or
            "posteriors", the soft-max of each cell, then their mean.
        sizes: int32 [N, 2], the height and width of each map; None where all maps fill
            the array.

    Raises:
        ValueError: the averaging is unknown.
    """
    validate_averaging(averaging)
    cells = None if sizes is None else inside(scores.shape, sizes)
    if averaging == "score_map":
        posteriors = jax.nn.softmax(scores.mean(axis=(1, 2), where=cells))
    else:
        posteriors = jax.nn.softmax(scores).mean(axis=(1, 2), where=cells)
    is_finite = jnp.isfinite(scores).all(axis=(1, 2, 3), where=cells)
    return jnp.where(is_finite[:, None], posteriors, jnp.nan)


def mirror_images(images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """Flips images [N, H, W, C] left to right, each within its own width."""
    if sizes is None:
        return images[:, :, ::-1]
    width = images.shape[2]
    columns = (sizes[:, 1, None] - 1 - np.arange(width)) % width
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2)


def mean_of(first: Any, second: Any) -> Any:
    """Returns the mean of two trees of arrays, array by array."""
    return jax.tree.map(lambda a, b: (a + b) / 2, first, second)


def validate_image(image: np.ndarray, channels: int) -> None:
    """Checks that an image is uint8 [H, W, channels].

    Raises:
        ValueError: the image is another kind of array.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(
            f"expected an image uint8 [H, W, {channels}], got {image.dtype} "
            f"{list(image.shape)}"
        )


def validate_scales(scales: Any) -> None:
    """Checks that there is a scale Q, and that each is at least 1 pixel.

    Raises:
        ValueError: there is no scale, or one is below 1.
    """
    if not scales or min(scales) < 1:
        raise ValueError(f"expected scales of at least 1 pixel, got {tuple(scales)}")

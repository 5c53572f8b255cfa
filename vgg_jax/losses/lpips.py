"""This module has LPIPS v0.1 with VGG-16 (Zhang et al. 2018, arXiv:1801.03924)."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.losses.extractor import FeatureExtractor, Maps, validate_pairs
from vgg_jax.losses.published import load_trunk, read_arrays
from vgg_jax.losses.ranges import Images, Range
from vgg_jax.preprocessing import Normalization

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
# What the authors do to values from -1 to 1, as gray levels.
NORMALIZATION = Normalization(
    mean=tuple(255 * (1 + shift) / 2 for shift in (-0.030, -0.088, -0.188)),
    std=tuple(255 * scale / 2 for scale in (0.458, 0.448, 0.450)),
)
EPSILON = 1e-10  # that the authors add to the length of a vector of features


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("trunk", "heads"), meta_fields=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lpips:
    """Measures how different two images look.

    The features of both are scaled to unit length at each position; their squared
    differences are weighted by channel, averaged over space, and summed over layers.

    It is a pytree of its weights, as `FeatureExtractor` is. The authors train only the
    heads, and `optax.masked` or `jax.lax.stop_gradient` freezes what is not to move.

    Args:
        trunk: the network, which computes the maps.
        heads: the weight of each channel of each of these maps, float32 [C].
    """

    trunk: FeatureExtractor
    heads: dict[str, jax.Array]

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        heads: str | os.PathLike[str] | None = None,
        source: str | None = None,
        dtype: Any = "float32",
        remat: bool = False,
    ) -> "Lpips":
        """Takes torchvision's VGG-16, for which the heads were trained.

        Args:
            path_or_name: a file of its weights in any format, or a published name such
                as "torchvision/vgg16" or "timm/vgg16".
            heads: a file with heads under the names of the `lpips` package, such as
                one that was trained further; None for the published ones of v0.1,
                which come with this library.
            source: "torchvision" asserts weights that cannot be recognized, such as
                those trained further.
            dtype: the type that the network computes in, such as "bfloat16"; distances
                are float32.
            remat: see `FeatureExtractor`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: weights of another network, or of another lineage.
        """
        model = load_trunk(path_or_name, source)
        trunk = FeatureExtractor.from_model(
            model, LAYERS, NORMALIZATION, dtype=dtype, remat=remat
        )
        arrays = read_arrays("lpips_vgg16") if heads is None else _read_heads(heads)
        return cls(
            trunk=trunk, heads={name: jnp.asarray(arrays[name]) for name in LAYERS}
        )

    def __call__(self, x: Images, y: Images, *, input_range: Range) -> jax.Array:
        """Computes the distance of each image to its partner.

        Two arrays [N, H, W, 3] -> float32 [N]. The original gives these as
        [N, 1, 1, 1].

        Args:
            x, y: images in RGB, of the same sizes.
            input_range: the values of black and of white, see `FeatureExtractor`.

        Raises:
            ValueError: images of different sizes, of another range, or too small.
        """
        return self.distance(
            self.features(x, input_range=input_range),
            self.features(y, input_range=input_range),
        )

    def features(self, images: Images, *, input_range: Range) -> Maps:
        """Computes what `distance` compares: [N, H, W, 3] -> {name: [N, h, w, C]}.

        Args:
            images: images in RGB.
            input_range: the values of black and of white, see `FeatureExtractor`.

        Raises:
            ValueError: images of another shape or range, or too small.
        """
        return self.trunk(images, input_range=input_range)

    def distance(self, x: Mapping[str, Any], y: Mapping[str, Any]) -> jax.Array:
        """Computes the distances of images from their `features` -> float32 [N].

        Raises:
            ValueError: features of images of different sizes.
        """
        validate_pairs(x, y, tuple(self.heads))
        return _distance(self.heads, dict(x), dict(y))

    def distance_map(
        self, x: Mapping[str, Any], y: Mapping[str, Any], size: tuple[int, int]
    ) -> jax.Array:
        """Computes where images differ: float32 [N, height, width].

        The map of each layer is enlarged, bilinearly, and they are summed, as the
        original does with `spatial=True`. Its mean is near to `distance`, and equal
        where sides are multiples of 16.

        Args:
            x, y: the `features` of the images.
            size: height and width of the map in pixels, by rights those of the images.

        Raises:
            ValueError: features of images of different sizes.
        """
        validate_pairs(x, y, tuple(self.heads))
        return _distance_map(self.heads, dict(x), dict(y), size=tuple(size))


def unit_vectors(maps: jax.Array) -> jax.Array:
    """Scales the vector at each position to unit length: [N, h, w, C] -> float32.

    Values are those of the original, x / (|x| + 1e-10). Its gradient at a vector of
    zeros is not a number; here it is zero, as ReLU's is where it gives zero.
    """
    vectors = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    is_zero = squares < jnp.finfo(squares.dtype).tiny
    # The root's own gradient must not be infinite: zero times that is no number.
    lengths = jnp.sqrt(jnp.where(is_zero, 1, squares))
    return jnp.where(is_zero, 0, vectors / (lengths + EPSILON))


def _differences(heads: Maps, x: Maps, y: Maps) -> Maps:
    """Weights the squared differences of unit vectors: {name: [N, h, w]}."""
    return {
        name: jnp.sum(
            jnp.square(unit_vectors(x[name]) - unit_vectors(y[name])) * head, axis=-1
        )
        for name, head in heads.items()
    }


@jax.jit
def _distance(heads: Maps, x: Maps, y: Maps) -> jax.Array:
    maps = _differences(heads, x, y)
    return jnp.sum(jnp.stack([m.mean(axis=(1, 2)) for m in maps.values()]), axis=0)


@functools.partial(jax.jit, static_argnames="size")
def _distance_map(heads: Maps, x: Maps, y: Maps, *, size: tuple[int, int]) -> jax.Array:
    maps = _differences(heads, x, y).values()
    enlarged = [jax.image.resize(m, (len(m), *size), "bilinear") for m in maps]
    return jnp.sum(jnp.stack(enlarged), axis=0)


def _read_heads(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads heads under the names of the `lpips` package.

    Raises:
        ValueError: one is missing.
    """
    from vgg_jax.weights.formats import read

    layers = read(os.fspath(path)).layers
    names = [f"lin{i}.model.1" for i in range(len(LAYERS))]
    if missing := [name for name in names if "kernel" not in layers.get(name, {})]:
        raise ValueError(
            f"{path}: expected heads of LPIPS under the names {', '.join(names)}, "
            f"missing are {', '.join(missing)}; the file has "
            f"{', '.join(layers) or 'none'}"
        )
    return {
        layer: np.asarray(layers[name]["kernel"], np.float32).reshape(-1)
        for layer, name in zip(LAYERS, names, strict=True)
    }

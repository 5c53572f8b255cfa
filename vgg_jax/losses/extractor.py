"""This module computes maps of a network's layers as a function of its weights."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from vgg_jax.console import did_you_mean
from vgg_jax.losses.ranges import Images, Range, normalize, validate_images
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import (
    AveragePool,
    L2Pool,
    Layer,
    MaxPool,
    Pool,
    check_size,
    stages,
)
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights.load import abstract_network, load_weights

Maps = dict[str, jax.Array]  # the map of each layer by its name, [N, h, w, C]
Params = dict[str, dict[str, Any]]

# What can stand in the place of a network's max pools: Gatys et al. took averages,
# DISTS takes roots of mean squares, of windows that overlap.
POOLS: dict[str, Callable[[MaxPool], Pool]] = {
    "max": lambda row: row,
    "average": lambda row: AveragePool(row.name, row.window, row.stride, row.ceil_mode),
    "l2": lambda row: L2Pool(row.name, row.window + 1, row.stride),
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "batch_stats"),
    meta_fields=("graphdef", "normalization", "names", "remat"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Computes the maps of some layers of a network.

    It is a pytree: its arrays are the weights of the layers up to the deepest of these,
    and all else is static. So it can be an argument of a jitted function, be
    differentiated, sharded and donated as any tree of parameters.

    Args:
        params: the parameters of each layer, such as {"conv1_1": {"kernel", "bias"}}.
        batch_stats: the running statistics; empty without batch normalization.
        graphdef: the network without them, as `nnx.split` gives it.
        normalization: what is done to gray levels 0-255 first.
        names: the layers whose maps are computed.
        remat: keep only what leaves each stage, and compute the stage again for the
            gradient: less memory, a third more time.
    """

    params: Params
    batch_stats: Params
    graphdef: nnx.GraphDef
    normalization: Normalization
    names: tuple[str, ...]
    remat: bool = False

    @classmethod
    def from_model(
        cls,
        model: ConvNet,
        names: Sequence[str],
        normalization: Normalization,
        *,
        pools: str = "max",
        dtype: Any = None,
        remat: bool = False,
    ) -> "FeatureExtractor":
        """Takes from a network what the maps of some layers need.

        Args:
            model: the network; the weights are shared with it, not copied.
            names: the names of the layers, such as "relu3_3", or "conv3_3" for the map
                before the ReLU.
            normalization: what the network's weights expect to be done to RGB pixels
                0-255.
            pools: what stands in the place of max pools, a key of `POOLS`.
            dtype: the type that is computed in, such as "bfloat16"; None for that of
                the network. Parameters stay float32.
            remat: see the class.

        Raises:
            ValueError: unknown names, pools or dtype, of which the message has the
                nearest, a normalization for another number of channels, or layers that
                other modules compute.
        """
        known = [row.name for row in model.layers]
        if isinstance(names, str) or not names:
            raise ValueError(f"expected names, such as ('relu3_3',), got {names!r}")
        for name in names:
            if name not in known:
                raise ValueError(f"no layer {name!r}: {did_you_mean(name, known)}")
        if pools not in POOLS:
            raise ValueError(f"unknown pools {pools!r}: {did_you_mean(pools, POOLS)}")
        if normalization.channels != model.in_channels:
            raise ValueError(
                f"expected {model.in_channels} values of mean and of std, one a "
                f"channel, got {normalization.channels}"
            )
        deepest = max(known.index(name) for name in names)
        model.refuse_replaced("a feature extractor", model.layers[: deepest + 1])
        layers = _with_pools(model.layers[: deepest + 1], pools)
        trunk = nnx.eval_shape(
            lambda: ConvNet(
                layers,
                in_channels=model.in_channels,
                dtype=dtype or model.dtype,
                rngs=jax.random.key(0),
            )
        )
        parts: Any = nnx.split(trunk, nnx.Param, nnx.BatchStat)
        graphdef, *wanted = parts
        params, batch_stats = (
            {name: own[name] for name in nnx.to_pure_dict(state)}
            for state, own in zip(
                wanted,
                map(nnx.to_pure_dict, nnx.state(model, nnx.Param, nnx.BatchStat)),
                strict=True,
            )
        )
        return cls(
            params=params,
            batch_stats=batch_stats,
            graphdef=graphdef,
            normalization=normalization,
            names=tuple(names),
            remat=remat,
        )

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        names: Sequence[str],
        *,
        source: str | None = None,
        pools: str = "max",
        dtype: Any = "float32",
        remat: bool = False,
    ) -> "FeatureExtractor":
        """Takes the weights of a file of any format, or published ones by their name.

        Args:
            path_or_name: the file, or a name such as "torchvision/vgg19"; which network
                it is for is seen from the names and shapes in it.
            names, pools, dtype, remat: the arguments of `from_model`.
            source: whose weights they are, a key of `lineage.LINEAGES`; None leaves
                that to what the file tells.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no network of the papers is in the file, nothing tells what its
                weights expect of pixels, or `from_model` refuses an argument.
        """
        from vgg_jax.weights.fetch import fetch
        from vgg_jax.weights.formats import read
        from vgg_jax.weights.recognition import recognize_network

        recognized = recognize_network(read(os.fspath(fetch(os.fspath(path_or_name)))))
        if recognized is None:
            raise ValueError(
                f"{path_or_name}: expected the weights of a network of the papers; "
                "load them into a model of your own, and call from_model"
            )
        model = abstract_network(recognized.network, num_classes=None)
        loaded = load_weights(model, path_or_name, source)
        if loaded.normalization is None:
            raise ValueError(
                f"{path_or_name}: nothing tells what these weights expect of pixels; "
                "give source, or load them into a model and call from_model with its "
                "normalization"
            )
        return cls.from_model(
            model, names, loaded.normalization, pools=pools, dtype=dtype, remat=remat
        )

    def __call__(self, images: Images, *, input_range: Range) -> Maps:
        """Computes the maps: [N, H, W, C] -> {name: [N, h, w, features]}.

        Args:
            images: NHWC, of any size that the layers fit into.
            input_range: the values of black and of white in them, such as (-1, 1),
                (0, 1) or (0, 255). Values that contradict it are noticed outside of
                `jax.jit`.

        Raises:
            ValueError: images of another shape or range, or too small.
        """
        channels = self.normalization.channels
        input_range = validate_images(images, input_range, channels)
        return _compute_maps(self, images, input_range=input_range)


def _with_pools(layers: tuple[Layer, ...], pools: str) -> tuple[Layer, ...]:
    """Puts other pools in the place of max pools."""
    replace = POOLS[pools]
    return tuple(replace(row) if isinstance(row, MaxPool) else row for row in layers)


@functools.partial(jax.jit, static_argnames="input_range")
def _compute_maps(
    extractor: FeatureExtractor, images: jax.Array, *, input_range: Range
) -> Maps:
    """Runs the network stage by stage; see `FeatureExtractor.__call__`."""
    model: ConvNet = nnx.merge(
        extractor.graphdef, extractor.params, extractor.batch_stats
    )
    check_size(model.layers, *images.shape[1:3])
    maps: Maps = {}

    def run(x: jax.Array, *, stage: tuple[Layer, ...]) -> tuple[jax.Array, Maps]:
        own: Maps = {}
        x = model.run(x, stage, train=False, collect=own)
        return x, {name: own[name] for name in own if name in extractor.names}

    x = normalize(images, input_range, extractor.normalization)
    for stage in stages(model.layers):
        run_stage = functools.partial(run, stage=stage)
        x, own = (jax.checkpoint(run_stage) if extractor.remat else run_stage)(x)
        maps |= own
    return {name: maps[name] for name in extractor.names}


def validate_pairs(
    x: Mapping[str, Any], y: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Checks that there are two arrays of the same shape of each layer.

    One of them may be of a single image, which all of the other are compared with.

    Raises:
        ValueError: no layer is named, an array is missing, or shapes differ.
    """
    if not names:
        raise ValueError("expected the weight of at least one layer, got none")
    for name in names:
        for arrays in (x, y):
            if name not in arrays:
                raise ValueError(f"expected a map of {name!r}, got {sorted(arrays)}")
        counts = {len(x[name]), len(y[name])} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"expected as many images as partners, or one, got {len(x[name])} and "
                f"{len(y[name])}"
            )
        if x[name].shape[1:] != y[name].shape[1:]:
            raise ValueError(
                "expected maps of images of the same size by the same network, got "
                f"{list(x[name].shape)} and {list(y[name].shape)} of {name!r}; crop or "
                "rescale one of the images"
            )

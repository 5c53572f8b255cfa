"""This module has the convolutional network that runs rows of layers."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.export import is_symbolic_dim

from vgg_jax.console import did_you_mean
from vgg_jax.kernels import tpu
from vgg_jax.kernels.convolution import conv_general_dilated
from vgg_jax.models import layers as rows
from vgg_jax.models.modules import (
    BatchNorm,
    Conv,
    Moments,
    Slots,
    promote_factors,
    takes_running_average,
)

_init = jax.nn.initializers

# Section 3.1: "paper" is its text (variance 1e-2), "caffe_001" the authors' Caffe files
# (deviation 1e-2), "glorot" what its footnote found to work without pre-training.
INITS: dict[str, Initializer] = {
    "paper": _init.normal(0.1),
    "caffe_001": _init.normal(0.01),
    "glorot": _init.glorot_uniform(),
    "he": _init.he_normal(),
}

DTYPES = ("float32", "bfloat16", "float16")  # that a network computes in

# One key; keys [N], one an image, whose dropout then does not depend on the others; or
# streams, of which "dropout" is taken.
Randomness = jax.Array | nnx.Rngs


def _as_matrix(init: Initializer) -> Initializer:
    """Initializes a fully-connected layer by the fans of its matrix.

    A convolution's fan-out counts every position of the window.
    """

    def init_as_matrix(key: Any, shape: Any, *args: Any) -> jax.Array:
        matrix = (int(np.prod(shape[:-1])), shape[-1])
        return init(key, matrix, *args).reshape(shape)

    return init_as_matrix


def default_dtype(platform: str) -> str:
    """Returns the name of the type that networks compute best in on a platform.

    A TPU multiplies bfloat16 alone, so that float32 would only be stored and moved.
    """
    return "bfloat16" if platform == "tpu" else "float32"


def _computation_dtype(dtype: Any) -> jnp.dtype:
    """Returns the type of a name such as "bfloat16", or of `jnp.bfloat16`."""
    if dtype is None:
        dtype = default_dtype(jax.default_backend())
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}: {did_you_mean(name, DTYPES)}")
    return jnp.dtype(name)


def class_scores(score_map: jax.Array) -> jax.Array:
    """Averages over space (section 3.2): [N, h, w, classes] -> float32 [N, classes]."""
    return score_map.astype(jnp.float32).mean(axis=(1, 2))


def _counted_cells(
    shape: tuple[int, ...], sizes: jax.Array | None, counted: jax.Array | None
) -> jax.Array | None:
    """Says which cells of a map enter batch statistics: bool [N, h or 1, w or 1, 1].

    They are those within `sizes` of the images that are `counted`, [N]; None is all.
    """
    cells = None if sizes is None else rows.inside(shape, sizes)
    if counted is None:
        return cells
    images = counted[:, None, None, None]
    return images if cells is None else images & cells


def _can_be_paired(layer: rows.Layer, sizes: jax.Array | None) -> bool:
    """Returns whether two images side by side can run a row."""
    match layer:
        case rows.Conv() | rows.Bias() | rows.Relu():
            return True
        case rows.Statistics() | rows.BatchNorm():
            return True
        case rows.MaxPool():
            return sizes is None or not layer.ceil_mode
        case _:
            return False


def _own_class(layer: rows.Layer) -> type:
    """Returns the class of the module that a network makes for a row."""
    match layer:
        case rows.Conv():
            return Conv
        case rows.BatchNorm():
            return BatchNorm
        case rows.Dropout():
            return nnx.Dropout
        case _:
            return type(None)


def _run_foreign(
    module: Any, layer: rows.Layer, x: jax.Array, train: bool | None, is_sized: bool
) -> jax.Array:
    """Runs a module that somebody has put in the place of a network's own.

    Args:
        module: the module.
        layer: the row.
        x: the row's input.
        train: what holds for all rows, see `_Call`.
        is_sized: whether images are smaller than their batch, so that rows tell which
            cells are theirs.

    Raises:
        ValueError: its map is of another height or width than that of a convolution, or
            of any row where `is_sized`.
    """
    if train is not None and isinstance(module, nnx.Module):
        modes = {"deterministic": not train, "use_running_average": not train}
        module = nnx.view(module, raise_if_not_found=False, **modes)
    y: jax.Array = module(x)
    if isinstance(layer, rows.Conv) or is_sized:
        expected = tuple(map(layer.output_size, x.shape[1:3]))
        if not any(map(is_symbolic_dim, expected)) and y.shape[1:3] != expected:
            raise ValueError(
                f"expected a map of height and width {expected}, as {layer} gives, "
                f"from {type(module).__name__} in its place, got {y.shape[1:3]}; of a "
                "convolution, say the padding and the strides"
            )
    return y


def _computes(module: Any, layer: rows.Layer) -> bool:
    """Returns whether a module computes what a row says."""
    match layer:
        case rows.Conv(_, features, kernel, stride, padding):
            same = ("SAME",) if stride == 1 and kernel == 2 * padding + 1 else ()
            return (
                type(module) in (Conv, nnx.Conv)
                and module.bias is not None
                and module.mask is None
                and module.out_features == features
                and module.kernel_size == (kernel, kernel)
                and module.strides in (stride, (stride, stride))
                and module.padding in (padding, *same)
                and module.input_dilation in (1, (1, 1))
                and module.kernel_dilation in (1, (1, 1))
                and module.feature_group_count == 1
            )
        case rows.BatchNorm():
            return (
                type(module) in (BatchNorm, nnx.BatchNorm)
                and module.scale is not None
                and module.bias is not None
                and module.epsilon == rows.EPSILON
            )
        case rows.Dropout():
            return type(module) is nnx.Dropout
        case _:
            return module is None


def _fill_outside(x: jax.Array, sizes: Sequence[jax.Array]) -> jax.Array:
    """Sets to 0 what is outside of an image, or of each of two side by side."""
    if len(sizes) == 1:
        return rows.fill_outside(x, sizes[0])
    channels = x.shape[-1] // len(sizes)
    of_channels = [jnp.repeat(own[..., None], channels, axis=-1) for own in sizes]
    return rows.fill_outside(x, jnp.concatenate(of_channels, axis=-1))


class _LayerKeys:
    """The keys that a stream of `nnx.Rngs` gives, for as many layers as it takes.

    Under `jax.eval_shape` a stream takes milliseconds for each: it asks its counter for
    its sharding, and what answers is an error with the program so far as its text.

    Args:
        rngs: of whose "params" stream they are.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._stream = rngs.params
        self._key, self._count = self._stream.key[...], self._stream.count[...]
        self._drawn = 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        key = jax.random.fold_in(self._key, self._count + self._drawn)
        self._drawn += 1
        return key

    def count(self) -> None:
        """Tells the stream how many were taken, so that it goes on after them."""
        self._stream.count[...] += self._drawn


class FeatureInfo(NamedTuple):
    """The channels, stride and receptive field of a row's map."""

    channels: int
    stride: int  # pixels of the image from one cell to the next
    receptive_field: int  # pixels of the image that a cell sees, along either side


class _Call(NamedTuple):
    """What holds for all rows of one run.

    Attributes:
        train, rngs: the arguments of `ConvNet.__call__`.
        wanted: the names of the rows whose maps somebody needs.
        measured: the normalizations that take the statistics of the batch.
        foreign: the rows whose module somebody has put in the place of the network's.
        convs: the convolution of each of `layers.Statistics`, by its name.
        signs: by what their maps are multiplied, [C], by the names of convolutions and
            of normalizations.
        normalized: the ReLUs that follow a normalization of `measured`.
    """

    train: bool | None
    rngs: Randomness | None
    wanted: Collection[str]
    measured: Collection[str]
    foreign: Collection[str]
    convs: dict[str, str]
    signs: dict[str, jax.Array]
    normalized: Collection[str]


class ConvNet(nnx.Module):
    """Runs `layers`; every parameter and every intermediate has its row's name.

    A new network evaluates. `model.train()` and `model.eval()` change that, as
    `nnx.view(model, deterministic=..., use_running_average=...)` does for a view of it;
    `train` at a call goes before either. Training, dropout is on, and batch
    normalization takes the statistics of the batch and moves the running ones.

    `setattr(model, name, module)` has another module do the work of any row: it takes
    the row's input and gives its map, both NHWC (a convolution's has the row's height
    and width), is told neither sizes nor `rngs`, and `train` as `nnx.view` tells it.
    `model.replaced` names such rows.

    `model.devices` is how many devices share a batch, each with as many images in a
    row; None says nothing of it. Where it is known, programs for TPU run two images of
    a device side by side through the layers of few channels, with the same result.

    Args:
        layers: the rows, input first.
        num_classes: channels of the score map; None for a backbone, whose output is the
            last row's map.
        in_channels: channels of the images.
        init: a key of `INITS`; biases start at zero.
        dtype: the type that is computed in, one of `DTYPES`; None for bfloat16 where
            JAX runs on TPU, else float32. Parameters are float32. So are class scores:
            the last convolution of a classifier multiplies in `dtype`, sums in
            float32, and nothing rounds its result.
        rngs: a key or `nnx.Rngs`, whose "params" stream makes the weights.
        keep_rngs: keep a stream named "dropout" inside, for calls without `rngs`; and
            for `nnx.bridge.to_linen`, whose `apply(..., rngs=...)` cannot hand one to a
            call.

    Raises:
        ValueError: an unknown init or dtype, or a count below 1.
    """

    def __init__(
        self,
        layers: Sequence[rows.Layer],
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        init: str = "glorot",
        dtype: Any = "float32",
        rngs: Randomness,
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
        rngs = rngs if isinstance(rngs, nnx.Rngs) else nnx.Rngs(rngs)
        self.layers = tuple(layers)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.devices: int | None = None
        self.dtype = _computation_dtype(dtype)
        channels = in_channels
        convolutions = [row for row in self.layers if isinstance(row, rows.Conv)]
        dtype = self.dtype
        keys: Any = _LayerKeys(rngs)
        for layer in self.layers:
            match layer:
                case rows.Conv():
                    of_scores: dict[str, Any] = {}
                    is_last = num_classes is not None and layer is convolutions[-1]
                    if is_last and dtype != jnp.float32:
                        dtype = jnp.dtype(jnp.float32)  # here and in what follows
                        of_scores = {
                            "preferred_element_type": dtype,
                            "promote_dtype": promote_factors,
                        }
                    dense = isinstance(layer, rows.FullyConnected)
                    module: nnx.Module = Conv(
                        channels,
                        layer.features,
                        (layer.kernel, layer.kernel),
                        strides=layer.stride,
                        padding=layer.padding,
                        kernel_init=_as_matrix(INITS[init]) if dense else INITS[init],
                        dtype=self.dtype,
                        conv_general_dilated=conv_general_dilated,
                        rngs=keys,
                        **of_scores,
                    )
                case rows.BatchNorm():
                    # torchvision's constants (its momentum is one minus ours).
                    module = BatchNorm(
                        channels,
                        use_running_average=True,
                        momentum=0.9,
                        epsilon=rows.EPSILON,
                        dtype=dtype,
                        rngs=keys,
                    )
                case rows.Dropout():
                    # Not a default stream, which Linen gives to every call.
                    kept = rngs if keep_rngs and "dropout" in rngs else None
                    module = nnx.Dropout(layer.rate, deterministic=True, rngs=kept)
                case _:
                    continue
            setattr(self, layer.name, module)
            channels = rows.channels_after(layer, channels)
        keys.count()

    @property
    def feature_info(self) -> dict[str, FeatureInfo]:
        """Channels, stride and receptive field of every row's map, by its name."""
        info = {}
        channels = self.in_channels
        fields = rows.receptive_fields(self.layers)
        for layer, field in zip(self.layers, fields, strict=True):
            channels = rows.channels_after(layer, channels)
            info[layer.name] = FeatureInfo(channels, field.stride, field.size)
        return info

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        rngs: Randomness | None = None,
    ) -> jax.Array:
        """Computes class scores: [N, H, W, in_channels] -> float32 [N, num_classes].

        The scores are those before soft-max. At the training size the score map is one
        cell; on larger images it is averaged over space (section 3.2). A backbone
        returns its map, [N, h, w, C].

        Args:
            images: NHWC, normalized as the weights expect.
            train: dropout on, batch statistics from this batch; None as the modules
                say, which a new network's evaluate.
            rngs: a key, keys [N] or `nnx.Rngs`, needed for dropout; see `Randomness`.

        Raises:
            ValueError: wrong rank or channels, or images too small for the network.
        """
        x = self.run(images, self.layers, train=train, rngs=rngs)
        return x if self.num_classes is None else class_scores(x)

    def score_map(
        self,
        images: jax.Array,
        *,
        sizes: jax.Array | None = None,
        train: bool | None = None,
        rngs: Randomness | None = None,
    ) -> jax.Array:
        """Computes the dense class score map of section 3.2.

        [N, H, W, in_channels] -> float32 [N, h, w, num_classes], before soft-max and
        spatial mean.

        Args:
            images: NHWC, normalized as the weights expect.
            sizes: int32 [N, 2], the height and width of each image where they share a
                batch, each in the upper left corner; what is right of it and below does
                not matter. Its map is that of the image alone, of the size that
                `layers.output_sizes` says, and zero outside. None for images that fill
                their arrays. A size that is too small for the network is not noticed.
            train, rngs: the arguments of `__call__`.

        Raises:
            ValueError: images that `__call__` refuses, or a backbone, which has no
                classes.
        """
        if self.num_classes is None:
            raise ValueError(
                "score_map needs a classifier, and num_classes=None made a backbone; "
                "create the model with num_classes, or call model(images) for its map"
            )
        last = self.layers[-1].name
        maps = self.features(images, (last,), sizes=sizes, train=train, rngs=rngs)
        return maps[last].astype(jnp.float32)

    def features(
        self,
        images: jax.Array,
        names: Sequence[str],
        *,
        sizes: jax.Array | None = None,
        train: bool | None = None,
        rngs: Randomness | None = None,
    ) -> dict[str, jax.Array]:
        """Computes named maps: [N, H, W, in_channels] -> {name: [N, h, w, C]}.

        Nothing past the deepest name is computed; `feature_info` says what each is.

        Args:
            images: NHWC, normalized as the weights expect.
            names: the names of the rows whose maps are returned.
            sizes: the sizes that `score_map` takes; every map is then zero outside its
                own size.
            train, rngs: the arguments of `__call__`.

        Raises:
            ValueError: an unknown name, a string for names, or images that do not fit.
        """
        if isinstance(names, str):
            raise ValueError(f"expected names, such as ({names!r},), got a string")
        known = [layer.name for layer in self.layers]
        for name in names:
            if name not in known:
                raise ValueError(f"no layer {name!r}: {did_you_mean(name, known)}")
        maps: dict[str, jax.Array] = {}
        if names:
            deepest = max(known.index(name) for name in names)
            layers = self.layers[: deepest + 1]
            self.run(
                images,
                layers,
                sizes=sizes,
                train=train,
                rngs=rngs,
                collect=maps,
                names=names,
            )
        if sizes is not None:
            for name in names:
                own = rows.output_sizes(self.layers[: known.index(name) + 1], sizes)
                maps[name] = rows.fill_outside(maps[name], own)
        return {name: maps[name] for name in names}

    def run(
        self,
        x: jax.Array,
        layers: tuple[rows.Layer, ...],
        *,
        sizes: jax.Array | None = None,
        train: bool | None = None,
        rngs: Randomness | None = None,
        counted: jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
        names: Collection[str] | None = None,
    ) -> jax.Array:
        """Runs consecutive rows of the network: [N, H, W, C] -> [N, h, w, features].

        Args:
            x: images, or the map that the row before `layers` leaves.
            layers: a part of `self.layers`.
            sizes: the sizes of the images in their batch, as `score_map` takes them,
                or the sizes of those maps.
            train, rngs: the arguments of `__call__`.
            counted: bool [N], the images that enter the batch statistics; None for all.
            collect: takes the maps of rows, by their names.
            names: which rows these are; None for all.

        Raises:
            ValueError: images that `__call__` refuses.
        """
        if layers[0] == self.layers[0]:
            self._validate(x, layers)
            x = x.astype(self.dtype)
        wanted: Collection[str] = ()
        if collect is not None:
            wanted = [layer.name for layer in layers] if names is None else names
        is_running = None if train is None else not train
        foreign = [row.name for row in layers if self._has_foreign_module(row)]
        measured = [
            row.name
            for row in layers
            if isinstance(row, rows.BatchNorm)
            and row.name not in foreign
            and not takes_running_average(getattr(self, row.name), is_running)
        ]
        fixed = {*wanted, *foreign}
        order = rows.in_running_order(layers, fixed, measured)
        statistics = [row for row in order if isinstance(row, rows.Statistics)]
        call = _Call(
            train,
            rngs,
            wanted,
            measured,
            foreign,
            convs={row.name: row.conv for row in statistics},
            signs={
                name: getattr(self, row.name).sign()
                for row in statistics
                if row.signed
                for name in (row.name, row.conv)
            },
            normalized=[
                row.name
                for before, row in itertools.pairwise(order)
                if isinstance(row, rows.Relu) and before.name in measured
            ],
        )
        moments: dict[str, Moments] = {}
        rest = order
        if paired := self._paired(order, x, sizes, fixed):
            apart = self._apart(order[len(paired) :], sizes, fixed)
            x, moments = self._run_pairs(x, paired, apart, sizes, counted, call)
            rest = order[len(paired + apart) :]
            if sizes is not None:
                sizes = rows.output_sizes(paired + apart, sizes)
        (x,), maps = self._run_rows((x,), rest, (sizes,), (counted,), call, moments)
        if collect is not None:
            collect.update(maps)
        self._move_statistics(moments, call)
        return x

    def _run_rows(
        self,
        parts: Sequence[jax.Array],
        order: Sequence[rows.Layer],
        sizes: Slots,
        counted: Slots,
        call: _Call,
        moments: dict[str, Moments],
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Runs rows on the parts of a batch, and returns their maps and those wanted.

        Args:
            parts: the maps, one of a whole batch or of pairs, or two of halves.
            order: the rows.
            sizes, counted: those of the images, see `Slots`.
            call: what holds for all rows.
            moments: the statistics of the batch so far, by the names of normalizations;
                takes further ones.
        """
        parts, maps = list(parts), {}
        pairs = len(sizes) > len(parts)
        for layer in order:
            own = [sizes] if pairs else [(of_part,) for of_part in sizes]
            # Compilers and profilers show an operation under its layer's name.
            with jax.named_scope(layer.name):
                is_measured = layer.name in call.measured and 0 not in parts[0].shape
                if is_measured and layer.name not in moments:
                    masks = tuple(
                        _counted_cells(parts[0].shape, *slot)
                        for slot in zip(sizes, counted, strict=True)
                    )
                    norm = getattr(self, layer.name)
                    moments[layer.name] = norm.moments(parts, masks)
                parts = [
                    self._run_row(layer, x, of_part, call, moments.get(layer.name))
                    for x, of_part in zip(parts, own, strict=True)
                ]
            if layer.name in call.wanted:
                (maps[layer.name],) = parts
            sizes = tuple(
                None if slot is None else layer.output_size(slot) for slot in sizes
            )
        return parts, maps

    def _run_row(
        self,
        layer: rows.Layer,
        x: jax.Array,
        sizes: Slots,
        call: _Call,
        moments: Moments | None,
    ) -> jax.Array:
        """Runs a row on a map, of pairs if there are two sizes."""
        module: Any = getattr(self, layer.name, None)
        sign, pairs = call.signs.get(layer.name), len(sizes) > 1
        known = [own for own in sizes if own is not None]
        own = sizes[0]  # the pools that run on pairs do not look at it
        match layer:
            case rows.Conv():
                if known and layer.padding:
                    x = _fill_outside(x, known)
                if layer.name in call.foreign:
                    return _run_foreign(module, layer, x, call.train, bool(known))
                return module.multiply(x, sign=sign, pairs=pairs)
            case rows.Bias() if layer.name in call.foreign:
                return x
            case _ if layer.name in call.foreign:
                return _run_foreign(module, layer, x, call.train, bool(known))
            case rows.Bias():
                return module.add_bias(x, pairs=pairs)
            case rows.Statistics():
                return x
            case rows.BatchNorm():
                return module.normalize(x, moments, sign=sign, pairs=pairs)
            case rows.Dropout():
                return self._drop(layer, x, call.train, call.rngs)
            case rows.LocalResponseNorm(_, size, alpha, beta, k):
                return rows.local_response_norm(
                    x, size=size, alpha=alpha, beta=beta, k=k
                )
            case rows.Relu() if layer.name in call.normalized:
                # Its derivative is made of x, which the normalization's derivative
                # computes again anyway from what it keeps.
                return jax.nn.relu(x)
            case rows.Relu():
                return rows.relu(x)
            case rows.MaxPool():
                return rows.max_pool(x, layer, own)
            case rows.AveragePool():
                return rows.average_pool(x, layer, own)
            case rows.L2Pool():
                return rows.l2_pool(x, layer, own)
            case _:
                raise TypeError(f"ConvNet has no rule for {layer}")

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the rows that a module computes as they do not say.

        A module of Flax that computes the row is none of them, such as
        `nnx.Conv(64, 64, (3, 3))` in the place of conv1_2.
        """
        return tuple(
            row.name
            for row in self.layers
            if not _computes(getattr(self, row.name, None), row)
        )

    def refuse_replaced(
        self, what: str, layers: Sequence[rows.Layer] | None = None
    ) -> None:
        """Refuses a network of which rows say something else than what is computed.

        Args:
            what: what cannot be made of it, for the message.
            layers: the rows that matter; None for all.

        Raises:
            ValueError: `replaced` has some of them.
        """
        names = [row.name for row in layers or self.layers]
        if replaced := [name for name in self.replaced if name in names]:
            name = replaced[0]
            module = type(getattr(self, name, None)).__name__
            raise ValueError(
                f"expected the network's own layers for {what}, got {module} in the "
                f"place of {name}, which computes something else than its row says; "
                "for another number of classes make the network with num_classes=N"
            )

    def _has_foreign_module(self, layer: rows.Layer) -> bool:
        """Whether a row's module is of another class than the network's own."""
        return type(getattr(self, layer.name, None)) is not _own_class(layer)

    def _move_statistics(self, moments: dict[str, Moments], call: _Call) -> None:
        """Moves the running statistics towards those of the batch."""
        for name, (mean, var, cells) in moments.items():
            if name in call.signs:
                mean = mean * call.signs[name]
            if name in call.convs:
                mean = mean + getattr(self, call.convs[name]).bias[...]
            getattr(self, name).move(Moments(mean, var, cells))

    def _paired(
        self,
        order: tuple[rows.Layer, ...],
        x: jax.Array,
        sizes: jax.Array | None,
        fixed: Collection[str],
    ) -> tuple[rows.Layer, ...]:
        """Returns the first rows if two images side by side can run them, else ().

        They end where one image fills the lanes of a TPU, after the convolution that
        makes so many channels, and before a row of `fixed`.
        """
        if self.devices is None or not tpu.can_pair(len(x), self.devices):
            return ()
        channels, paired = x.shape[-1], []
        for layer in order:
            # The statistics of a convolution's map are cheapest where it is made.
            fits = 2 * channels <= tpu.LANES or isinstance(layer, rows.Statistics)
            if not fits or not _can_be_paired(layer, sizes) or layer.name in fixed:
                break
            paired.append(layer)
            channels = rows.channels_after(layer, channels)
        convolutions = sum(isinstance(layer, rows.Conv) for layer in paired)
        return tuple(paired) if convolutions > 1 else ()

    def _apart(
        self,
        order: tuple[rows.Layer, ...],
        sizes: jax.Array | None,
        fixed: Collection[str],
    ) -> tuple[rows.Layer, ...]:
        """Returns the rows up to a pool if the images of pairs can run them apart.

        They are those that follow the rows of pairs: the maps of the first and of the
        second images are then put together when the pool has made them smaller.
        """
        for number, layer in enumerate(order, 1):
            if not _can_be_paired(layer, sizes) or layer.name in fixed:
                break
            if isinstance(layer, rows.MaxPool):
                return order[:number]
        return ()

    def _run_pairs(
        self,
        x: jax.Array,
        paired: tuple[rows.Layer, ...],
        apart: tuple[rows.Layer, ...],
        sizes: jax.Array | None,
        counted: jax.Array | None,
        call: _Call,
    ) -> tuple[jax.Array, dict[str, Moments]]:
        """Runs rows: on TPU of two images side by side, elsewhere of each by itself.

        On TPU the rows `apart` run on the first images of the pairs and on the second.
        Returns the map and the statistics of the batch.
        """
        devices = self.devices or 1

        def run_pairs(
            x: jax.Array, *of_images: jax.Array | None
        ) -> tuple[jax.Array, dict[str, Moments]]:
            moments: dict[str, Moments] = {}
            slots: list[Slots] = [
                (None, None) if of is None else tpu.pair_rows(of, devices)
                for of in of_images
            ]
            sizes, counted = slots
            x = tpu.pair(x, devices)
            (x,), _ = self._run_rows((x,), paired, sizes, counted, call, moments)
            halves = tpu.halves(x)
            sizes = tuple(
                None if own is None else rows.output_sizes(paired, own) for own in sizes
            )
            halves, _ = self._run_rows(halves, apart, sizes, counted, call, moments)
            return tpu.join(halves, devices), moments

        def run_singles(
            x: jax.Array, sizes: jax.Array | None, counted: jax.Array | None
        ) -> tuple[jax.Array, dict[str, Moments]]:
            moments: dict[str, Moments] = {}
            both = paired + apart
            (x,), _ = self._run_rows((x,), both, (sizes,), (counted,), call, moments)
            return x, moments

        return lax.platform_dependent(
            x, sizes, counted, tpu=run_pairs, default=run_singles
        )

    def _drop(
        self,
        layer: rows.Dropout,
        x: jax.Array,
        train: bool | None,
        rngs: Randomness | None,
    ) -> jax.Array:
        drop = getattr(self, layer.name)
        is_off = drop.deterministic if train is None else not train
        if is_off or not isinstance(rngs, jax.Array):
            return drop(x, deterministic=is_off, rngs=rngs)
        number = self.layers.index(layer)

        def with_key(x: jax.Array, key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, number)
            return drop(x, deterministic=False, rngs=key)

        is_typed = jnp.issubdtype(rngs.dtype, jax.dtypes.prng_key)
        keys = rngs if is_typed else jax.random.wrap_key_data(rngs)
        if keys.shape == ():
            return with_key(x, keys)
        if keys.shape != x.shape[:1]:
            raise ValueError(
                f"expected one key or keys [{x.shape[0]}], one an image, got keys "
                f"{list(keys.shape)}"
            )
        return jax.vmap(with_key)(x, keys)

    def _validate(self, images: jax.Array, layers: tuple[rows.Layer, ...]) -> None:
        """Refuses images that do not fit the rows."""
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(
                f"expected images [N, H, W, {self.in_channels}], got "
                f"{list(images.shape)}"
            )
        rows.check_size(layers, *images.shape[1:3])

"""Every setting of a run, as dataclasses; defaults as arXiv:1409.1556, section 3.1.

A file in `configs/` has `get_config() -> Config` and states only what differs from the
paper's recipe. Nothing here imports JAX or reads a file.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from vgg_jax.console import did_you_mean

# Mean RGB of the ILSVRC-2012 training set, 0-255, as published with the Oxford weights.
IMAGENET_MEAN = (123.68, 116.779, 103.939)

# Width over height of the shapes that whole images are padded to in dense evaluation:
# the square, and the best six for all else in `tools/ilsvrc_sizes.csv`, rounded
# outwards; `python -m vgg_jax.tools.bucket_cost` says what they cost.
BUCKET_RATIOS = (0.3, 0.66, 1.0, 1.34, 1.52, 2.0, 3.3)


@dataclasses.dataclass(kw_only=True)
class VGGConfig:
    """Keywords of `vgg_jax.create_model` for the VGG networks (Table 1)."""

    name: str
    num_classes: int = 1000
    in_channels: int = 3
    width: float = 1.0  # multiplies every hidden layer's channels
    dropout: float = 0.5  # on the first two fully-connected layers
    head: str = "paper"  # or "global_pool"
    fc_features: int = 4096
    fc_kernel: int = 7  # side of the pool5 map at the training crop: 7 at 224, 1 at 32
    ceil_mode: bool = False  # pools round up, as Caffe's do; same at multiples of 32
    init: str = "glorot"  # "paper", "caffe_001", "glorot" or "he"
    dtype: str = "float32"  # of the computation; parameters are always float32


@dataclasses.dataclass(kw_only=True)
class NiNConfig:
    """Keywords of `vgg_jax.create_model` for Network in Network (arXiv:1312.4400)."""

    name: str
    num_classes: int = 1000
    in_channels: int = 3
    width: float = 1.0
    dropout: float = 0.5
    init: str = "glorot"
    dtype: str = "float32"


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Which images, and how a training crop is taken from them."""

    # "fashion_mnist", "fashion_mnist_boxes" (its items on canvases), "imagenet2012" or
    # "folder"
    dataset: str
    data_dir: str = "~/.cache/vgg_jax"  # for "folder": the folder with the pictures
    crop: int = 224
    scale_min: int = 256  # training scale S is drawn from [scale_min, scale_max]
    scale_max: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN  # subtracted from 0-255 pixels, per channel
    std: tuple[float, ...] = (1.0, 1.0, 1.0)  # the paper does not divide
    flip: bool = True
    color_shift: float = 0.0  # deviation of the random color shift; the paper's is 0.1
    color_pca: str = "imagenet"  # or "computed" before, by `vgg_jax.tools.color_pca`
    validation_fraction: float = 0.01  # held out of train, for the plateau and the best
    on_corrupt_image: str = "raise"  # or "skip": leave it out, name it and count it
    num_workers: int = 0  # processes that decode; 0 decodes in threads of this one
    num_threads: int = 4  # of each process; each holds a batch that it read ahead


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """SGD with momentum; the rate falls when validation accuracy stops improving."""

    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 5e-4  # L2 penalty, coupled, on every parameter
    plateau_factor: float = 0.1
    plateau_patience: int = 3  # validations without improvement before the rate falls
    plateau_min_delta: float = 1e-3  # smallest fall of the error that counts
    plateau_drops: int = (
        3  # falls of the rate; the plateau after the last one ends the run
    )
    metric: str = (
        "top5_error"  # of validation: sets the plateau and the best checkpoint
    )
    # Names such as ("fc6", "fc7", "fc8"): the others stay as they were; () trains all.
    trained_layers: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """Section 3.2: the scales Q and the order of soft-max and spatial average."""

    center_scale: int = 256  # Q of validation, and of the protocols center and tencrop
    scales: tuple[int, ...] = (256, 384, 512)  # Q of the others
    averaging: str = "score_map"  # mean of the map, then soft-max; or "posteriors"
    bucket_ratios: tuple[float, ...] = BUCKET_RATIOS  # shapes that images are padded to
    batch_size: int = 64  # images, or crops, that the network is given at once


@dataclasses.dataclass(kw_only=True)
class LocalizationConfig:
    """Appendix A: the network says where the object is, not what it is."""

    # "pcr", a box for each class: model.num_classes is 4 times the data's classes; or
    # "scr", one for all: it is 4.
    regression: str = "pcr"
    # Boxes of one object are merged while two match better: 0 is the same box, 1 and
    # more no overlap.
    merge_below: float = 0.5


@dataclasses.dataclass(kw_only=True)
class Config:
    """One run: a network, its data, its training and its evaluation."""

    model: VGGConfig | NiNConfig
    data: DataConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    localization: LocalizationConfig | None = None  # None classifies
    batch_size: int = 256
    accumulate_steps: int = 1  # parts of a batch, one after another: less memory
    remat: bool = False  # compute each stage again for its gradient: less memory
    shard_fc: bool = False  # each device has a part of fc6, fc7 and fc8
    num_epochs: float = 74.0
    validate_every_epochs: float = 1.0
    checkpoint_every_steps: int = 1000
    log_every_steps: int = 50
    seed: int = 0
    # The run whose best weights this one starts from, by the name of its workdir beside
    # this run's own, or by an absolute path; None starts from `model.init` alone.
    init_from: str | None = None


@dataclasses.dataclass(kw_only=True)
class Curriculum:
    """Runs one after another, each in a folder of its name (section 3.1).

    A later rung may name an earlier one as its `init_from`.
    """

    rungs: dict[str, Config]


def check_fields(config: Any, prefix: str = "") -> None:
    """That every setting is there and of its type; one of these dataclasses.

    Raises:
        ValueError: the message names the setting, what was expected and what was found.
    """
    kinds = typing.get_type_hints(type(config))
    for name, value in vars(config).items():
        if name not in kinds:
            raise ValueError(f"no setting {prefix}{name}: {did_you_mean(name, kinds)}")
        kind = kinds[name]
        if not _is(value, kind):
            readable = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"expected {prefix}{name} of {readable}, got {value!r}")
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{prefix}{name}.")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's type; a whole number is a float too."""
    if isinstance(kind, types.UnionType):
        return any(_is(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        one, _ = typing.get_args(kind)
        return isinstance(value, tuple) and all(_is(v, one) for v in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as JSON can hold them: tuples become lists."""
    return _map_tuples(dataclasses.asdict(config), tuple, list)


def from_dict(settings: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        TypeError: an unknown field.
    """
    values = _map_tuples(dict(settings), list, tuple)
    is_nin = values["model"]["name"].startswith("nin")
    where = values.get("localization")
    return Config(
        **values
        | {
            "model": (NiNConfig if is_nin else VGGConfig)(**values["model"]),
            "data": DataConfig(**values["data"]),
            "optimizer": OptimizerConfig(**values["optimizer"]),
            "evaluation": EvaluationConfig(**values["evaluation"]),
            "localization": None if where is None else LocalizationConfig(**where),
        }
    )


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(field, ours, theirs) where two `to_dict`s differ; fields as flags name them."""
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _map_tuples(tree: Any, found: type, wanted: type) -> Any:
    if isinstance(tree, Mapping):
        return {name: _map_tuples(leaf, found, wanted) for name, leaf in tree.items()}
    return wanted(tree) if isinstance(tree, found) else tree

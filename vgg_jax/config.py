"""Every setting of a run: default, range, meaning, and whether a resume may change it.

The defaults are those of arXiv:1409.1556, section 3.1. A file in `configs/` has
`get_config() -> Config` and states only what differs. Nothing here imports JAX or reads
a file; names of networks, data sets, optimizers and schedules are the keys of tables
in other modules, and `vgg_jax.config_file` looks them up.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Self

from vgg_jax.console import did_you_mean

# Mean RGB of the ILSVRC-2012 training set, 0-255, as published with the Oxford weights.
IMAGENET_MEAN = (123.68, 116.779, 103.939)

# Pixels of an image: Pillow, too, takes one with more for an attack.
MAX_PIXELS = 178_956_970

# Bounds of settings, far above what is of use: what is beyond them is a slip of the
# pen, and would end in an error of memory or of a library.
MAX_SCALE = 10_000  # pixels of a short side
MAX_BATCH = 2**20  # images
MAX_OUTPUTS = 2**20  # classes, and units of a layer
MAX_PROCESSES = 512
MAX_THREADS = 256  # of a process
# Numbers of every setting are below the first in size, and zero or above the second.
LARGEST, SMALLEST = 2**32, 1e-30
MAX_TEXT = 500  # characters of a name or a path
MAX_SHOWN = 100  # characters of a value in a message

# Width over height of the shapes that whole images are padded to in dense evaluation:
# the square, and the best six for all else in `tools/ilsvrc_sizes.csv`, rounded
# outwards; `python -m vgg_jax.tools.bucket_cost` says what they cost.
BUCKET_RATIOS = (0.3, 0.66, 1.0, 1.34, 1.52, 2.0, 3.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is declared of a setting beside its default.

    Args:
        help: one line that says what it is, with its unit.
        resumable: a run that goes on may change it, for its steps stay as they were.
        own: each of several hosts may have a value of its own.
        choices: the values of a string setting; () for any, or those of `table`.
        table: "module:NAME" of the mapping whose keys are the values.
        prefix: what other values than the keys of `table` begin with; "" for none.
        nonempty: a tuple has at least one value.
        low, above: a number is at least `low`, or above `above`.
        high, below: a number is at most `high`, or below `below`.
    """

    help: str
    resumable: bool = False
    own: bool = False
    choices: tuple[str, ...] = ()
    table: str = ""
    prefix: str = ""
    nonempty: bool = False
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None

    @property
    def interval(self) -> str:
        """The range of a number, such as "[0, 1)"; "" where any number will do."""
        if {self.low, self.above, self.high, self.below} == {None}:
            return ""
        begin = f"[{self.low}" if self.low is not None else "("
        if self.low is None:
            begin += "-inf" if self.above is None else f"{self.above}"
        end = f"{self.high}]" if self.high is not None else ")"
        if self.high is None:
            end = ("inf" if self.below is None else f"{self.below}") + end
        return f"{begin}, {end}"

    def allows(self, number: float) -> bool:
        """Whether a number is in the interval; one that is not finite never is."""
        return is_usable(number) and not (
            (self.low is not None and number < self.low)
            or (self.above is not None and number <= self.above)
            or (self.high is not None and number > self.high)
            or (self.below is not None and number >= self.below)
        )

    def validate(self, name: str, value: Any) -> None:
        """Checks a value, by all but its type and `table`.

        Args:
            name: of the setting, for the message.
            value: of the setting.

        Raises:
            ValueError: the message names the setting, what was expected and what was
                found.
        """
        numbers = value if isinstance(value, tuple) else (value,)
        if isinstance(value, dict):
            numbers = tuple(value.values())
        if self.nonempty and value == ():
            raise ValueError(f"expected {name} of at least one value, got none")
        if all(isinstance(number, int | float) for number in numbers):
            if not all(map(self.allows, numbers)):
                interval = f"in {self.interval}" if self.interval else "finite"
                if not all(map(is_usable, numbers)):
                    interval += f", and 0 or from {SMALLEST:g} to {LARGEST:,} in size"
                raise ValueError(f"expected {name} {interval}, got {shown(value)}")
            return
        for word in numbers:
            if isinstance(word, str) and len(word) > MAX_TEXT:
                raise ValueError(
                    f"expected {name} of at most {MAX_TEXT:,} characters, got "
                    f"{len(word):,}"
                )
        if self.choices and value is not None and value not in self.choices:
            raise ValueError(
                f"unknown {name} {shown(value)}: "
                f"{did_you_mean(str(value), self.choices)}"
            )


def is_usable(number: float) -> bool:
    """Whether a number is neither too large nor too small to compute with."""
    # Comparisons alone: a whole number can be too large for a float.
    return number == 0 or SMALLEST <= abs(number) < LARGEST


def shown(value: Any) -> str:
    """Returns a value as messages show it, on one line that is not too long."""
    if isinstance(value, tuple):
        if len(value) == 1:
            return f"({shown(value[0])},)"
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, int) and abs(value) > 10**MAX_SHOWN:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A field of a settings dataclass; `default` is `...` where there is none.

    The further keywords are those of `Setting`.
    """
    metadata = {"setting": Setting(help=help, **declared)}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, help: str) -> Any:
    """A field that holds another settings dataclass, by default a new one of `kind`."""
    metadata = {"setting": Setting(help=help)}
    return dataclasses.field(default_factory=kind, metadata=metadata)


class Section:
    """Base of the settings dataclasses; answers a keyword that is no setting."""

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Makes an object for `__init__`.

        Raises:
            TypeError: an unknown setting; the message has the nearest names.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in values.keys() - known:
            raise TypeError(
                f"{cls.__name__} has no setting {name!r}: {did_you_mean(name, known)}"
            )
        return super().__new__(cls)


@dataclasses.dataclass(kw_only=True)
class ModelConfig(Section):
    """Keywords of `vgg_jax.create_model` that every network has."""

    name: str = setting(..., "name of the network", table="vgg_jax.models:MODELS")
    num_classes: int | None = setting(
        1000,
        "outputs of the network; None takes the number from the data",
        low=1,
        high=MAX_OUTPUTS,
    )
    in_channels: int = setting(
        3, "channels of the images: 3 is RGB, 1 is gray", low=1, high=3
    )
    width: float = setting(
        1.0, "multiplies every hidden layer's channels", above=0, high=100
    )
    init: str = setting(
        "glorot",
        "how the first weights are drawn",
        choices=("paper", "caffe_001", "glorot", "he"),
    )
    dtype: str | None = setting(
        "float32",
        "the type that the network computes in, its parameters being float32; None "
        "takes bfloat16 on TPU and float32 elsewhere",
        choices=("float32", "bfloat16"),  # float16 would need its loss scaled
    )


@dataclasses.dataclass(kw_only=True)
class VGGConfig(ModelConfig):
    """Keywords of `vgg_jax.create_model` for the VGG networks (Table 1)."""

    dropout: float = setting(
        0.5, "share of units that dropout drops after fc6 and fc7", low=0, below=1
    )
    head: str = setting("paper", "the classifier", choices=("paper", "global_pool"))
    fc_features: int = setting(4096, "units of fc6 and fc7", low=1, high=MAX_OUTPUTS)
    fc_kernel: int = setting(
        7, "side of the pool5 map that fc6 sees", low=1, high=MAX_SCALE
    )
    ceil_mode: bool = setting(False, "pools round up, as Caffe's do")
    batch_norm: bool | None = setting(
        None, "batch normalization before each ReLU; None as the name says"
    )
    lrn: str | None = setting(
        None,
        "local response normalization after relu1_1; None as the name says",
        choices=("krizhevsky", "caffe"),
    )


@dataclasses.dataclass(kw_only=True)
class NiNConfig(ModelConfig):
    """Keywords of `vgg_jax.create_model` for Network in Network (arXiv:1312.4400)."""

    dropout: float = setting(
        0.5, "share of units that dropout drops before the last block", low=0, below=1
    )
    final_relu: bool | None = setting(
        None, "a ReLU on the scores; None as the name says"
    )


@dataclasses.dataclass(kw_only=True)
class DataConfig(Section):
    """Which images, and how a training crop is taken from them."""

    dataset: str = setting(
        ...,
        "the data set, or tfds:NAME of one that TensorFlow Datasets prepared",
        table="vgg_jax.data.sources:SOURCES",
        prefix="tfds:",
    )
    data_dir: str = setting(
        "~/.cache/vgg_jax",
        "folder of the prepared data set; for the data set folder, of the pictures",
        resumable=True,
        own=True,
    )
    cache_dir: str = setting(
        "~/.cache/vgg_jax",
        "local folder for a copy of a data_dir in a bucket, gs://",
        resumable=True,
        own=True,
    )
    crop: int = setting(
        224, "side of a training crop, in pixels", low=1, high=MAX_SCALE
    )
    scale_min: int = setting(
        256,
        "smallest training scale S, the short side in pixels (section 3.1)",
        low=1,
        high=MAX_SCALE,
    )
    scale_max: int = setting(
        256,
        "largest training scale S in pixels; each crop draws S from scale_min to "
        "scale_max (section 3.1)",
        low=1,
        high=MAX_SCALE,
    )
    exact_shrinking: bool = setting(
        False,
        "training crops shrink by the mean of all pixels that fall on one, as images "
        "of an evaluation do, and not of a few points: half as fast",
    )
    mean: tuple[float, ...] = setting(
        IMAGENET_MEAN,
        "subtracted from pixels 0-255, one number a channel",
        low=0,
        high=255,
    )
    std: tuple[float, ...] = setting(
        (1.0, 1.0, 1.0),
        "divides pixels after mean is subtracted; the paper does not divide",
        above=0,
    )
    flip: bool = setting(True, "half of the training crops are mirrored")
    pad: int = setting(
        0,
        "zeros around a preprocessed training crop; a random window of it is taken",
        low=0,
        high=MAX_SCALE,
    )
    whiten: bool = setting(
        False,
        "contrast normalization and ZCA whitening in place of mean and std; computed "
        "by vgg_jax.tools.whitening",
    )
    color_shift: float = setting(
        0.0, "deviation of the random color shift; the paper's is 0.1", low=0
    )
    color_pca: str = setting(
        "imagenet",
        "axes of the color shift; computed ones are left by vgg_jax.tools.color_pca",
        choices=("imagenet", "computed"),
    )
    validation_fraction: float = setting(
        0.01,
        "share of the training images held out for validation",
        low=0,
        below=1,
    )
    on_device: bool | None = setting(
        None,
        "training images stay on the devices, and crops are cut there: for images of "
        "one shape whose short side is at most scale_min, with fewer than 100,000 "
        "pixels at scale_max; None does it up to 1 GiB, on CPU for runs of 64,000 "
        "images and more",
        resumable=True,
    )
    on_corrupt_image: str = setting(
        "raise",
        "what to do with an image that cannot be decoded: raise an error, or skip it, "
        "name it and count it",
        choices=("raise", "skip"),
        resumable=True,
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "pixels of an image, height times width; one whose header promises more cannot "
        "be decoded",
        low=1,
        high=2**30,  # OpenCV's own
        resumable=True,
    )
    num_workers: int = setting(
        0,
        "processes that decode images; 0 decodes in threads of this one",
        low=0,
        high=MAX_PROCESSES,
        resumable=True,
        own=True,
    )
    num_threads: int | None = setting(
        None,
        "threads of each process that decodes, each with a batch read ahead; 0 reads "
        "nothing ahead; None takes one for small images, else as many as there are "
        "cores, at most 16",
        low=0,
        high=MAX_THREADS,
        resumable=True,
        own=True,
    )

    def conflicts(self) -> Iterator[str]:
        """Says which settings do not fit one another."""
        if len(self.mean) != len(self.std):
            yield (
                "expected mean and std of one number a channel, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not self.crop <= self.scale_min <= self.scale_max:
            yield (
                "expected crop <= scale_min <= scale_max, so that a crop fits into the "
                f"rescaled image; got crop {self.crop}, scale_min {self.scale_min}, "
                f"scale_max {self.scale_max}"
            )
        if self.whiten and not self.crop == self.scale_min == self.scale_max:
            yield (
                "whiten=True is for images of one size: expected crop, scale_min and "
                f"scale_max to be the same, got {self.crop}, {self.scale_min} and "
                f"{self.scale_max}"
            )
        if self.pad >= self.crop:
            yield (
                f"expected pad below the crop, {self.crop}, so that something of the "
                f"image is left, got {self.pad}"
            )


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig(Section):
    """The optimizer and the schedule of its learning rate.

    Section 3.1 uses SGD with momentum, whose rate falls when validation accuracy stops
    improving. Settings of an optimizer or a schedule that is not chosen are not used.
    """

    name: str = setting(
        "sgd", "the optimizer", table="vgg_jax.training.optimizer:OPTIMIZERS"
    )
    learning_rate: float = setting(
        1e-2, "the rate that the schedule begins with, after any warm-up", above=0
    )
    momentum: float = setting(0.9, "momentum of sgd and lars", low=0, below=1)
    weight_decay: float = setting(
        5e-4,
        "L2 penalty: coupled for sgd and lars (there of kernels alone), decoupled for "
        "adamw",
        low=0,
    )
    trust_coefficient: float = setting(
        1e-3,
        "for lars, at a rate of 1 the length of what a gradient adds to a kernel's "
        "momentum, over the kernel's own",
        above=0,
    )
    beta1: float = setting(
        0.9, "for adamw, decay of the gradient's mean", low=0, below=1
    )
    beta2: float = setting(
        0.999, "for adamw, decay of the squared gradient's mean", low=0, below=1
    )
    epsilon: float = setting(
        1e-8, "for adamw, added to the root of the squared gradient's mean", above=0
    )
    schedule: str = setting(
        "plateau",
        "how the learning rate changes during the run",
        table="vgg_jax.training.schedule:SCHEDULES",
    )
    warmup_epochs: float = setting(
        0.0, "epochs in which the rate rises linearly to the schedule's own", low=0
    )
    step_epochs: float = setting(
        30.0, "for the step schedule, epochs between two falls of the rate", above=0
    )
    step_factor: float = setting(
        0.1, "for the step schedule, multiplies the rate at each fall", above=0, high=1
    )
    polynomial_power: float = setting(
        2.0, "for the polynomial schedule, the power of the share that is left", above=0
    )
    plateau_factor: float = setting(
        0.1,
        "for the plateau schedule, multiplies the rate at each fall",
        above=0,
        high=1,
    )
    plateau_patience: int = setting(
        3, "validations without improvement before the rate falls", low=1
    )
    plateau_min_delta: float = setting(
        1e-3, "smallest fall of the error that counts", low=0, below=1
    )
    plateau_drops: int = setting(
        3, "falls of the rate; the plateau after the last ends the run", low=0
    )
    metric: str = setting(
        "top5_error",
        "what validation measures for the plateau and the best checkpoint",
        choices=("top1_error", "top5_error", "box_error", "loss"),
    )
    trained_layers: tuple[str, ...] = setting(
        (),
        'layers that are trained, such as ("fc6", "fc7", "fc8"); the others stay as '
        "they were, with their batch statistics, and cost no gradient; () trains all",
    )
    keep_maps: bool = setting(
        False,
        "where trained_layers are the last ones, compute the map before them once for "
        "each image, of its center crop and with data.flip of the mirror image, and "
        "train on these",
    )
    layer_rates: dict[str, float] = setting(
        {},
        "multiples of the learning rate, by a layer's name or its beginning, such as "
        "conv=0.1,conv5=0.3,fc8=1; the longest that fits a layer counts, 0 leaves the "
        "layer as trained_layers does, and others have 1",
        low=0,
    )


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig(Section):
    """Section 3.2: the scales Q and the order of soft-max and spatial average."""

    center_scale: int = setting(
        256,
        "test scale Q of validation and of the protocols center and tencrop, the short "
        "side in pixels",
        low=1,
        high=MAX_SCALE,
    )
    scales: tuple[int, ...] = setting(
        (256, 384, 512),
        "test scales Q of the other protocols, short sides in pixels",
        low=1,
        high=MAX_SCALE,
        nonempty=True,
        resumable=True,
    )
    averaging: str = setting(
        "score_map",
        "what is averaged over space: the score map, before the soft-max, or the "
        "posteriors of its cells, after it",
        choices=("score_map", "posteriors"),
        resumable=True,
    )
    bucket_ratios: tuple[float, ...] = setting(
        BUCKET_RATIOS,
        "width over height of the shapes that whole images are padded to",
        low=0.01,  # an image may have 1 to 64
        high=100,
        nonempty=True,
        resumable=True,
    )
    batch_size: int | None = setting(
        None,
        "crops that the network is given at once, or whole images of as many pixels in "
        "all; each device gets at least one; None gives each 64",
        low=1,
        high=MAX_BATCH,
        resumable=True,
    )

    def crops_at_once(self, devices: int) -> int:
        """Returns how many crops so many devices are given at once, all together."""
        return 64 * devices if self.batch_size is None else self.batch_size

    def conflicts(self) -> Iterator[str]:
        """Says which settings do not fit one another."""
        if len(set(self.scales)) < len(self.scales):
            yield f"expected evaluation.scales to be different, got {self.scales}"


@dataclasses.dataclass(kw_only=True)
class LocalizationConfig(Section):
    """Appendix A: the network says where the object is, not what it is."""

    regression: str = setting(
        "pcr",
        "a box for each class (num_classes is 4 times the classes), or one (it is 4)",
        choices=("pcr", "scr"),
    )
    merge_below: float = setting(
        0.5,
        "boxes merge that match better: 0 is the same box, 1 no overlap",
        low=0,
        resumable=True,
    )


@dataclasses.dataclass(kw_only=True)
class Config(Section):
    """One run: a network, its data, its training and its evaluation."""

    model: VGGConfig | NiNConfig = setting(..., "the network")
    data: DataConfig = setting(..., "the images")
    optimizer: OptimizerConfig = section(OptimizerConfig, "the training method")
    evaluation: EvaluationConfig = section(EvaluationConfig, "the testing method")
    localization: LocalizationConfig | None = setting(None, "None classifies")
    batch_size: int = setting(
        256, "images of a step, of all devices together", low=1, high=MAX_BATCH
    )
    accumulate_steps: int = setting(
        1,
        "parts of a batch one after another: less memory; batch normalization takes "
        "the statistics of each part, so that a run with it must keep the number",
        low=1,
        high=MAX_BATCH,
        resumable=True,
    )
    remat: bool = setting(
        False, "compute each stage again for its gradient: less memory", resumable=True
    )
    shard_fc: bool | None = setting(
        False,
        "groups of devices share fc6, fc7 and fc8; None does so on TPU, where some "
        "number of the chips can share them evenly",
        resumable=True,
    )
    onednn: bool | None = setting(
        None,
        "oneDNN computes the convolutions of training on CPU, where jaxlib has it, but "
        "for a run's first seconds: faster steps, but each start compiles them again, "
        "in those seconds; None does so for runs of 64,000 images and more; False "
        "leaves it out of long evaluations, too",
        resumable=True,
    )
    num_epochs: float = setting(
        74.0, "passes over the training images, at most", above=0, resumable=True
    )
    validate_every_epochs: float = setting(1.0, "epochs between validations", above=0)
    checkpoint_every_steps: int = setting(
        1000, "steps between checkpoints", low=1, resumable=True
    )
    log_every_steps: int = setting(50, "steps between lines", low=1, resumable=True)
    report: bool = setting(
        False,
        "train.py ends with the errors of center crops of the test images, and a page",
        resumable=True,
    )
    seed: int = setting(
        0,
        "where the random weights, order, crops and dropout start from",
        low=0,
        below=2**32,
    )
    init_from: str | None = setting(
        None,
        "what this run starts from: another run's best weights, by the name of a "
        "folder beside this run's or a path; a file of weights; or the name of "
        "published ones, such as torchvision/vgg16",
    )

    def conflicts(self) -> Iterator[str]:
        """Says which settings do not fit one another."""
        if self.optimizer.warmup_epochs > self.num_epochs:
            yield (
                "expected optimizer.warmup_epochs of at most num_epochs, "
                f"{self.num_epochs:g}, got {self.optimizer.warmup_epochs:g}"
            )
        data, scale = self.data, self.evaluation.center_scale
        if data.on_device and (
            self.localization is not None or self.optimizer.keep_maps
        ):
            yield (
                "data.on_device=True is for crops of images alone, not for training "
                "with boxes or with optimizer.keep_maps; set it to False"
            )
        if self.optimizer.keep_maps and (
            (data.scale_min, data.scale_max) != (scale, scale)
            or data.color_shift
            or data.pad
            or data.whiten
            or self.localization is not None
        ):
            yield (
                "optimizer.keep_maps computes each image once, as validation does: "
                "expected data.scale_min and data.scale_max of "
                f"evaluation.center_scale, {scale}, color_shift and pad of 0, no "
                "whitening and no localization"
            )
        channels = self.model.in_channels
        errors: tuple[str, ...] = ("top1_error", "top5_error")
        if channels not in (1, 3):
            yield (f"expected model.in_channels of 1 (gray) or 3 (RGB), got {channels}")
        if len(self.data.mean) != channels:
            yield (
                "expected data.mean and data.std of one number a channel, "
                f"{channels}, got {len(self.data.mean)}"
            )
        if self.evaluation.center_scale < self.data.crop:
            yield (
                "expected evaluation.center_scale of at least the crop, "
                f"{self.data.crop}, got {self.evaluation.center_scale}"
            )
        scales = {self.evaluation.center_scale, *self.evaluation.scales}
        if self.data.whiten and scales != {self.data.crop}:
            yield (
                "data.whiten=True is for images of one size: expected "
                f"evaluation.center_scale and evaluation.scales of {self.data.crop}, "
                f"the crop, got {sorted(scales)}"
            )
        if self.localization is not None:
            errors = ("box_error",)
        measured = (*errors, "loss")
        if self.optimizer.metric not in measured:
            yield (
                f"optimizer.metric {self.optimizer.metric!r} is not measured here, "
                f"only {', '.join(measured)}"
            )
        num_classes = self.model.num_classes  # None: `validate` is called again later
        if self.optimizer.metric == "top5_error" and num_classes and num_classes <= 5:
            yield (
                f"top-5 error is always 0 with {num_classes} classes; "
                "set optimizer.metric to top1_error"
            )


@dataclasses.dataclass(kw_only=True)
class Curriculum:
    """Runs one after another, each in a folder of its name (section 3.1).

    A later run may name an earlier one as its `init_from`.
    """

    runs: dict[str, Config]


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Setting, Any]]:
    """Gives (name, declaration, value) of each setting, sections opened.

    Names are those of the flags: "data.crop" is --config.data.crop.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.metadata["setting"], value


def is_default(section: Any, name: str) -> bool:
    """Returns whether a setting of a settings dataclass has its default value."""
    (field,) = (f for f in dataclasses.fields(section) if f.name == name)
    return bool(getattr(section, name) == field.default)


def shared_settings(config: Any) -> dict[str, Any]:
    """Returns the settings, by name, that all hosts of a run must have alike."""
    return {
        name: value for name, declared, value in settings(config) if not declared.own
    }


def validate(config: Any, prefix: str = "") -> None:
    """Checks every setting of a settings dataclass, and that they fit one another.

    Raises:
        ValueError: the message names the setting, what was expected and what was found.
    """
    for name, declared, value in settings(config, prefix):
        declared.validate(name, value)
    validate_types(config, prefix)
    for part in (config, *vars(config).values()):
        if hasattr(part, "conflicts"):
            for conflict in part.conflicts():
                raise ValueError(conflict)


def known_num_classes(config: Config) -> int:
    """The number of the network's outputs.

    Raises:
        ValueError: it is left to the data, which only a training run opens.
    """
    if config.model.num_classes is None:
        raise ValueError(
            "model.num_classes is None, so that training takes it from the data; this "
            "needs the number: set --config.model.num_classes=N"
        )
    return config.model.num_classes


def validate_types(config: Any, prefix: str = "") -> None:
    """Checks that every setting of a settings dataclass is known and of its type.

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
            raise ValueError(
                f"expected {prefix}{name} of {readable}, got {shown(value)}"
            )
        if dataclasses.is_dataclass(value):
            validate_types(value, f"{prefix}{name}.")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's type; a whole number is a float too."""
    if isinstance(kind, types.UnionType):
        return any(_is(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        one, _ = typing.get_args(kind)
        return isinstance(value, tuple) and all(_is(v, one) for v in value)
    if typing.get_origin(kind) is dict:
        one, other = typing.get_args(kind)
        return isinstance(value, dict) and all(
            _is(name, one) and _is(v, other) for name, v in value.items()
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as JSON can hold them: tuples become lists."""
    return _map_tuples(dataclasses.asdict(config), tuple, list)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        TypeError: an unknown field.
        ValueError: a value of another type than its setting's.
    """
    config = _build(Config, _map_tuples(dict(values), list, tuple))
    validate_types(config)
    return config


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    """A settings dataclass from a tree; of several kinds the one with these fields."""
    kinds = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        sections = [
            one
            for one in (typing.get_args(kinds.get(name)) or (kinds.get(name),))
            if dataclasses.is_dataclass(one)
        ]
        if sections and isinstance(value, Mapping):
            fitting = [
                one
                for one in sections
                if value.keys() <= {field.name for field in dataclasses.fields(one)}
            ]
            value = _build((fitting or sections)[-1], value)
        arguments[name] = value
    return kind(**arguments)


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


def _map_tuples(tree: Any, old: type, new: type) -> Any:
    if isinstance(tree, Mapping):
        return {name: _map_tuples(leaf, old, new) for name, leaf in tree.items()}
    return new(tree) if isinstance(tree, old) else tree

"""Which settings a run can be trained with: all that can be said without data."""

import math
from operator import attrgetter

from vgg_jax.config import Config, NiNConfig
from vgg_jax.console import did_you_mean
from vgg_jax.data.sources import check_config
from vgg_jax.training.objectives import LOCALIZATION, task_of

# Numbers: lowest and highest, as an interval is written.
RANGES = {
    "seed": "[0, 4294967296)",
    "batch_size": "[1, inf)",
    "accumulate_steps": "[1, inf)",
    "num_epochs": "(0, inf)",
    "validate_every_epochs": "(0, inf)",
    "checkpoint_every_steps": "[1, inf)",
    "log_every_steps": "[1, inf)",
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.momentum": "[0, 1)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.plateau_factor": "(0, 1]",
    "optimizer.plateau_patience": "[1, inf)",
    "optimizer.plateau_min_delta": "[0, 1)",
    "optimizer.plateau_drops": "[0, inf)",
    "evaluation.batch_size": "[1, inf)",
}
# Words: those that there are.
CHOICES = {
    "optimizer.metric": ("top1_error", "top5_error", "box_error", "loss"),
    "model.dtype": ("float32", "bfloat16"),  # float16 would need its loss scaled
}


def check(config: Config, devices: int) -> None:
    """That a run can be trained with these settings on so many devices.

    Raises:
        ValueError: the message names the setting, what was expected and what was found.
    """
    check_config(config.data)
    for name, interval in RANGES.items():
        value = attrgetter(name)(config)
        if not _inside(value, interval):
            raise ValueError(f"expected {name} in {interval}, got {value}")
    for name, known in CHOICES.items():
        value = attrgetter(name)(config)
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: {did_you_mean(value, known)}")
    if config.localization is not None:
        regression = config.localization.regression
        if regression not in LOCALIZATION:
            raise ValueError(
                f"unknown localization.regression {regression!r}: "
                f"{did_you_mean(regression, LOCALIZATION)}"
            )
    measured = (*task_of(config).errors, "loss")
    if config.optimizer.metric not in measured:
        raise ValueError(
            f"optimizer.metric {config.optimizer.metric!r} is not measured here, only "
            f"{', '.join(measured)}"
        )
    if config.model.name.startswith("nin") != isinstance(config.model, NiNConfig):
        raise ValueError(
            f"{config.model.name} needs the other kind of settings than "
            f"{type(config.model).__name__}; start from its own file in configs/"
        )
    channels = config.model.in_channels
    if channels not in (1, 3):
        raise ValueError(f"expected 1 (gray) or 3 (RGB) channels, got {channels}")
    if len(config.data.mean) != channels:
        raise ValueError(
            "data.mean and data.std need one number a channel: expected "
            f"{channels}, got {len(config.data.mean)}"
        )
    parts = devices * config.accumulate_steps
    if config.batch_size % parts:
        steps = config.accumulate_steps
        raise ValueError(
            f"expected a batch_size that {devices} devices can share"
            + (f" in accumulate_steps={steps} parts" if steps > 1 else "")
            + f", got {config.batch_size}; use a multiple of {parts}"
        )
    if config.evaluation.center_scale < config.data.crop:
        raise ValueError(
            f"expected evaluation.center_scale of at least the crop, "
            f"{config.data.crop}, got {config.evaluation.center_scale}"
        )
    if config.optimizer.metric == "top5_error" and config.model.num_classes <= 5:
        raise ValueError(
            f"top-5 error is always 0 with {config.model.num_classes} classes; "
            "set optimizer.metric to top1_error"
        )


def _inside(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)

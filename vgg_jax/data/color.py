"""This module has the axes of the color shift of Krizhevsky et al. 2012, section 4.1.

Each image gets a_1 * p_1 + a_2 * p_2 + a_3 * p_3 added to all its pixels, where p_i are
the principal axes of the training set's RGB values, each as long as the pixels'
standard deviation along it, and every a_i is drawn from N(0, 0.1). The paper says
"eigenvalue" where Krizhevsky's published program has its square root (`color_stdevs`);
only with the root is the shift the same whether pixels are 0-1 or 0-255.
"""

import re

import numpy as np
from etils.epath import Path

from vgg_jax.config import DataConfig
from vgg_jax.files import parse_path, read_json

# ILSVRC-2012, as fb.resnet.torch has them: the variances of 0-1 pixels along the
# principal axes, and the axes in RGB, one a row. The largest, nearly gray, has the
# standard deviation sqrt(0.2175) * 255 = 119 gray levels.
IMAGENET_VARIANCES = (0.2175, 0.0188, 0.0045)
IMAGENET_AXES = (
    (-0.5675, -0.5808, -0.5836),
    (0.7192, -0.0045, -0.6948),
    (0.4009, -0.8140, 0.4203),
)


def load_axes(config: DataConfig) -> np.ndarray:
    """Gives the axes that `config.color_pca` names: [channels, channels] gray levels.

    A row is a principal axis times the pixels' standard deviation along it.

    Raises:
        ValueError: axes of another number of channels.
        FileNotFoundError: they are not computed yet; the message says what to type.
    """
    channels = len(config.mean)
    if config.color_pca == "imagenet":
        if channels != 3:
            raise ValueError(
                f"color_pca='imagenet' is of RGB, found {channels} channel; set it to "
                "'computed', or color_shift to 0"
            )
        return scale_axes(IMAGENET_AXES, IMAGENET_VARIANCES) * 255
    path = computed_path(config)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which color_pca='computed' needs; type `python -m "
            "vgg_jax.tools.color_pca --config CONFIG` with the flags of this run"
        )
    try:
        axes = np.asarray(read_json(path)["axes"], np.float64)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"cannot read {path} as axes of the color shift ({error}); remove it and "
            "compute it again"
        ) from error
    if axes.shape != (channels, channels) or not np.isfinite(axes).all():
        raise ValueError(
            f"expected {channels} axes of {channels} finite numbers in {path}, found "
            f"{axes.tolist()}; remove it and compute it again"
        )
    return axes


def scale_axes(axes: object, variances: object) -> np.ndarray:
    """Makes unit vectors, a row each, as long as their standard deviations."""
    return np.sqrt(np.asarray(variances))[:, np.newaxis] * np.asarray(axes)


def computed_path(config: DataConfig, name: str = "colors.json") -> Path:
    """Returns the hidden file beside the data where `tools.color_pca` leaves the axes.

    Other statistics of the same data set lie beside it under other names.
    """
    folder = parse_path(config.data_dir).expanduser()
    # Such as ":" and "/" of tfds:NAME/CONFIG, which a file name cannot have.
    data_set = re.sub(r"[^\w.-]", "_", config.dataset)
    return folder / f".{data_set}_{name}"

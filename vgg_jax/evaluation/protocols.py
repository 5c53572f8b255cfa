"""Evaluates by protocols: what a network sees of an image, what is averaged."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from vgg_jax.config import Config
from vgg_jax.console import did_you_mean, progress_bar
from vgg_jax.data import transforms
from vgg_jax.data.sources import Source
from vgg_jax.data.zca import preprocessing_of
from vgg_jax.evaluation.predictions import Predictions, fuse, validate_finite
from vgg_jax.inference.forward import Network, Posteriors, validate_averaging
from vgg_jax.inference.passes import View, over_source
from vgg_jax.models import ConvNet
from vgg_jax.models.layers import smallest_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What the network sees of an image; the posteriors of all of it are averaged.

    Args:
        description: one line for the user.
        layout: where crops are cut; None for the whole image.
        flip: whether each of them is also seen mirrored left to right.
        single_scale: whether its scale is `evaluation.center_scale` by default, and not
            `evaluation.scales`.
        parts: names of protocols whose posteriors are averaged, in place of a layout.
    """

    description: str
    layout: transforms.CropLayout | None = None
    flip: bool = True
    single_scale: bool = False
    parts: tuple[str, ...] = ()


PROTOCOLS = {
    "center": Protocol(
        description="the center crop",
        layout=transforms.center,
        flip=False,
        single_scale=True,
    ),
    "tencrop": Protocol(
        description="four corners and the center, mirrored (Krizhevsky et al., 2012)",
        layout=transforms.corners_and_center,
        single_scale=True,
    ),
    "dense": Protocol(description="the whole image, mirrored"),
    "multicrop": Protocol(
        description="a regular grid of 5x5 crops, mirrored", layout=transforms.grid_5x5
    ),
    "combined": Protocol(
        description="dense and multicrop", parts=("dense", "multicrop")
    ),
}


class Pass(NamedTuple):
    """What one pass over the images runs: a protocol without parts, at one scale Q."""

    protocol: str
    scale: int


def passes_of(protocol: str, scales: Sequence[int]) -> tuple[Pass, ...]:
    """Returns the passes whose posteriors a protocol averages, with equal weights.

    Raises:
        ValueError: the protocol is unknown; the message names the nearest.
    """
    names = find_protocol(protocol).parts or (protocol,)
    return tuple(Pass(name, scale) for name in names for scale in scales)


def default_scales(protocol: str, config: Config) -> tuple[int, ...]:
    """Returns the configuration's short sides Q for a protocol, in pixels.

    Raises:
        ValueError: the protocol is unknown; the message names the nearest.
    """
    if find_protocol(protocol).single_scale:
        return (config.evaluation.center_scale,)
    return tuple(config.evaluation.scales)


def validate_protocol(
    model: ConvNet, config: Config, protocol: str, scales: Sequence[int]
) -> None:
    """Checks that an evaluation can run, before any work.

    Raises:
        ValueError: the protocol or the averaging is unknown, or there is no scale, the
            same one twice, or one too small for the network; the message names the
            nearest name, or the smallest scale that fits.
    """
    validate_averaging(config.evaluation.averaging)
    row = find_protocol(protocol)
    if not scales:
        raise ValueError(f"expected at least one scale for {protocol}, got none")
    if len(set(scales)) < len(scales):
        raise ValueError(
            f"expected different scales, got {', '.join(map(str, scales))}"
        )
    for part in row.parts:
        validate_protocol(model, config, part, scales)
    if row.parts:
        return
    whole = row.layout is None
    crop = config.data.crop
    smallest = smallest_size(model.layers)
    if not whole and crop < smallest:
        raise ValueError(
            f"data.crop={crop} is too small for {config.model.name}: the smallest that "
            f"fits is {smallest}"
        )
    smallest = smallest if whole else crop
    if min(scales) < smallest:
        needed_by = config.model.name if whole else f"{crop}x{crop} crops"
        raise ValueError(
            f"scale {min(scales)} is too small for {needed_by}: the smallest that fits "
            f"is {smallest}"
        )


def evaluate(
    model: ConvNet,
    source: Source,
    config: Config,
    *,
    protocol: str,
    scales: Sequence[int],
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Predictions:
    """Computes the posteriors of every image of a source, averaged over scales.

    Args:
        model: a classifier of the source's classes.
        source: the images.
        config: `data` says how they are cropped and normalized, `evaluation` the batch
            size and the averaging order.
        protocol: a key of `PROTOCOLS`.
        scales: short sides Q, in pixels; soft-max posteriors are averaged over them.
        mesh: the batch is spread over its "data" axis; by default over all devices of
            this process, which evaluates its share of the images.
        progress: the name of the work in a progress bar on stderr; None for none.

    Raises:
        ValueError: the protocol cannot run, see `validate_protocol`; or the model and
            the source have different numbers of classes.
        NotFiniteError: the network gave an image scores that are not finite.
    """
    validate_protocol(model, config, protocol, scales)
    classes = len(source.class_names)
    if classes != model.num_classes:
        raise ValueError(
            f"expected a network of {classes} classes, as the data has, got "
            f"{model.num_classes}"
        )
    network = Network.from_model(model, preprocessing_of(config.data))
    passes = passes_of(protocol, scales)
    predictions = []
    with progress_bar(progress, len(source) * len(passes)) as bar:
        for one_pass in passes:
            row = find_protocol(one_pass.protocol)
            view = View(one_pass.scale, row.layout)
            head = Posteriors(
                averaging=config.evaluation.averaging,
                flip=row.flip,
                views=view.crops,
            )
            outputs = over_source(
                network, head, source, config, view, mesh=mesh, bar=bar
            )
            predictions.append(
                Predictions(
                    posteriors=outputs["output"],
                    labels=outputs["label"],
                    weights=outputs["weight"],
                )
            )
            work = f"{one_pass.protocol} at Q = {one_pass.scale}"
            validate_finite(predictions[-1], source, work)
    return fuse(predictions)


def find_protocol(protocol: str) -> Protocol:
    """Returns the protocol of a name.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}: {did_you_mean(protocol, PROTOCOLS)}"
        )
    return PROTOCOLS[protocol]

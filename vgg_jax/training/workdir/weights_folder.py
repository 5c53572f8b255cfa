"""This module makes folders of foreign weights, which stand where a run's folder would.

Such a folder has the settings of a network and says which file its weights are in;
whatever evaluates a run evaluates it. The weights themselves stay where they are.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path

from vgg_jax import distributed
from vgg_jax.config import (
    Config,
    DataConfig,
    NiNConfig,
    OptimizerConfig,
    VGGConfig,
    differences,
    to_dict,
)
from vgg_jax.files import parse_path, read_json, resolve, write_json
from vgg_jax.models import MODELS, ConvNet, vgg
from vgg_jax.training.workdir.facts import CONFIG, read_config, write_class_names
from vgg_jax.weights.create import complete
from vgg_jax.weights.fetch import fetch
from vgg_jax.weights.formats import read
from vgg_jax.weights.load import (
    Loaded,
    abstract_network,
    fit,
    load_weights,
    num_classes_in,
)
from vgg_jax.weights.published import PUBLISHED, Result, file_digest, identify
from vgg_jax.weights.recognition import recognize_network

WEIGHTS = "weights.json"


def chosen_folders(
    workdir: Path | Sequence[Path] | None,
    weights: str | Sequence[str] | None,
    config: Config | None = None,
    source: str | None = None,
    channels: str | None = None,
) -> list[Path]:
    """Returns the folders that a command line's --workdir and --weights stand for.

    Raises:
        FileNotFoundError, ValueError: as `make_weights_folder`.
    """
    workdirs = [workdir] if isinstance(workdir, os.PathLike) else workdir or []
    names = [weights] if isinstance(weights, str) else weights or []
    made = (make_weights_folder(name, config, source, channels) for name in names)
    return [*workdirs, *made]


def folders_of(values: argparse.Namespace, config: Config | None = None) -> list[Path]:
    """Returns the folders that a command was given, with all flags about weights.

    Args:
        values: what a `cli.Parser` with `add_workdir(or_weights=True)` has read.
        config: the settings of weights, see `make_weights_folder`.

    Raises:
        FileNotFoundError, ValueError: as `make_weights_folder`.
    """
    return chosen_folders(
        values.workdir, values.weights, config, values.source, values.channels
    )


def make_weights_folder(
    weights: str,
    config: Config | None = None,
    source: str | None = None,
    channels: str | None = None,
) -> Path:
    """Makes the folder runs/NAME of weights, or finds that it is there already.

    Args:
        weights: a file of weights, or the name of published ones.
        config: the settings of the network and of its images; None takes the network
            that the file is of, and images as ImageNet's.
        source, channels: whose weights they are, and the order of their color
            channels, see `load_weights`.

    Raises:
        FileNotFoundError: there is no such file and no such name.
        ValueError: the weights are not of this network, nothing tells how images are
            to be normalized, or the folder holds something else.
    """
    path = fetch(weights)
    settings, loaded = settings_of_weights(weights, config, source, channels)
    published = PUBLISHED.get(weights) or identify(path)
    name = weights if weights in PUBLISHED else path.name.partition(".")[0]
    folder = resolve(parse_path("runs") / name.replace("/", "_"))
    facts = {
        "weights": weights,
        "file": os.fspath(resolve(path)),
        "sha256": file_digest(path),
        "source": source,
        "channels": channels,
        "lineage": loaded.lineage,
        "evidence": loaded.evidence,
        "random_layers": list(loaded.kept),
        "published": [dataclasses.asdict(r) for r in published.results]
        if published
        else [],
    }
    if (folder / CONFIG).exists():
        _refuse_others(folder, facts, settings)
    elif distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / WEIGHTS, facts)
        names = loaded.class_names
        if names is not None and len(names) == settings.model.num_classes:
            write_class_names(folder, names)
        write_json(folder / CONFIG, to_dict(settings))  # last: now it is one
    distributed.wait_for_all()
    if distributed.is_first():
        print(f"{loaded}\n  its results are kept in {folder}", file=sys.stderr)
    return folder


def settings_of_weights(
    weights: str,
    config: Config | None = None,
    source: str | None = None,
    channels: str | None = None,
) -> tuple[Config, Loaded]:
    """Gives settings what comes with weights: their network, classes, normalization.

    Args:
        weights, config, source, channels: as `make_weights_folder` takes them.

    Returns:
        The settings, and what was loaded into a network that is not kept.

    Raises:
        FileNotFoundError, ValueError: as `make_weights_folder`.
    """
    keeps_normalization = config is not None
    if config is None:
        config = _settings_of(fetch(weights), weights)
    if config.model.num_classes is None:
        contents = read(os.fspath(fetch(weights)))
        network = _abstract(config, 1000)
        classes = num_classes_in(network, contents, fit(network, contents).found)
        model = dataclasses.replace(config.model, num_classes=classes or 1000)
        config = dataclasses.replace(config, model=model)
    network = _abstract(config, config.model.num_classes)
    loaded = load_weights(network, weights, source, channels=channels)
    normalization = loaded.normalization
    if normalization is None and not keeps_normalization:
        raise ValueError(
            f"nothing tells what images {weights} wants ({loaded.evidence}); say whose "
            "weights they are with --source, or give their mean and deviation in a "
            "configuration, --config.data.mean and --config.data.std"
        )
    data = dataclasses.replace(config.data, whiten=False)
    if normalization is not None:
        mean, std = tuple(normalization.mean), tuple(normalization.std)
        data = dataclasses.replace(data, mean=mean, std=std)
    return dataclasses.replace(config, data=data), loaded


def _settings_of(path: Path, weights: str) -> Config:
    """Returns the settings of the network that a file has the weights of."""
    network = recognize_network(read(os.fspath(path)))
    if network is None:
        raise ValueError(
            f"{weights} has the weights of no network of the papers at full width; a "
            "folder that `python -m vgg_jax.weights convert RUN OUT` writes says which "
            "it is for, and so does --config where a command takes it"
        )
    classes = network.num_classes or 1000  # a trunk's are nobody's
    model: VGGConfig | NiNConfig
    if MODELS[network.network].func is vgg:
        head = "paper" if network.num_classes else "global_pool"
        model = VGGConfig(name=network.network, num_classes=classes, head=head)
    else:
        model = NiNConfig(name=network.network, num_classes=classes)
    metric = "top1_error" if classes <= 5 else "top5_error"
    config = Config(
        model=model,
        data=DataConfig(dataset="imagenet2012"),
        optimizer=OptimizerConfig(metric=metric),
    )
    if network.network == "nin_cifar":  # of images of 32x32, without a larger scale
        side = 32
        config.data = dataclasses.replace(
            config.data, crop=side, scale_min=side, scale_max=side
        )
        config.evaluation = dataclasses.replace(
            config.evaluation, center_scale=side, scales=(side,)
        )
    return config


def _abstract(config: Config, num_classes: int | None) -> ConvNet:
    """Makes the network of settings without values."""
    options = dataclasses.asdict(config.model) | {"num_classes": num_classes}
    return abstract_network(**options)


def _refuse_others(folder: Path, facts: Mapping[str, Any], config: Config) -> None:
    """Raises an error where a folder holds other weights, or other settings of them."""
    stored = read_facts(folder) or {}
    if stored.get("sha256") != facts["sha256"]:
        held = stored.get("weights", "a run")
        raise ValueError(
            f"{folder} holds {held}, not {facts['weights']}: move it, or start the "
            "command in another folder"
        )
    # How images are evaluated may change; what the network is may not.
    changed = [
        f"  {name}: {theirs!r} there, {ours!r} now"
        for name, ours, theirs in differences(
            to_dict(config), to_dict(read_config(folder))
        )
        if name.startswith("model.") or name in ("data.mean", "data.std", "data.crop")
    ]
    if changed:
        raise ValueError(
            f"{folder} holds {facts['weights']} with other settings:\n"
            + "\n".join(changed)
            + "\nmove it, or start the command in another folder"
        )


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Reads what is known of a folder's weights; None for a run's own folder.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = folder / WEIGHTS
    if not path.exists():
        return None
    facts = read_json(path)
    if not isinstance(facts, dict) or not {"file", "sha256"} <= facts.keys():
        raise ValueError(f"{path} is damaged: it does not name a file of weights")
    return facts


def restore_weights(folder: Path, facts: Mapping[str, Any]) -> tuple[ConvNet, Config]:
    """Makes the network of a folder of weights, and reads its settings.

    Raises:
        FileNotFoundError: the file of the weights is gone.
        ValueError: it has changed since the folder was made.
    """
    path = parse_path(facts["file"])
    if not path.exists():
        raise FileNotFoundError(f"the weights of {folder} are gone: no file {path}")
    if file_digest(path) != facts["sha256"]:
        raise ValueError(
            f"{path} has changed since {folder} was made of it; remove {folder} and "
            "give the command with --weights once more"
        )
    config = read_config(folder)
    # By its name, a file is known to be the published one even if its digest is not.
    is_named = facts.get("weights") in PUBLISHED
    model = _abstract(config, config.model.num_classes)
    name = facts["weights"] if is_named else os.fspath(path)
    load_weights(model, name, facts.get("source"), channels=facts.get("channels"))
    options = dataclasses.asdict(config.model)
    complete(model, options.pop("name"), options)
    return model, config


def published_results(folder: Path) -> Sequence[Result]:
    """Returns the errors that were published for a folder's weights."""
    facts = read_facts(folder) or {}
    return [
        Result(**{**row, "scales": tuple(row["scales"])})
        for row in facts.get("published", ())
    ]

"""This module keeps networks in folders as the Hugging Face hub has them.

A folder has the weights in `model.safetensors`, under timm's names, and in
`config.json` the network, its options, and what images it wants. timm reads both where
it has the network itself.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path

from vgg_jax import files
from vgg_jax.models import ConvNet
from vgg_jax.preprocessing import Normalization
from vgg_jax.weights.create import complete
from vgg_jax.weights.fetch import EXTRA
from vgg_jax.weights.folders import PRETRAINED_CONFIG as CONFIG
from vgg_jax.weights.folders import PRETRAINED_WEIGHTS as WEIGHTS
from vgg_jax.weights.folders import is_run
from vgg_jax.weights.load import Loaded, abstract_network, load_weights
from vgg_jax.weights.save import save_weights


def save_pretrained(
    model: ConvNet,
    folder: str | os.PathLike[str],
    network: str,
    options: Mapping[str, Any] | None = None,
    *,
    loaded: Loaded | None = None,
    normalization: Normalization | None = None,
    class_names: Sequence[str] | None = None,
    license: str | None = None,
) -> None:
    """Writes a network into a folder from which `from_pretrained` makes it again.

    Args:
        model: the network.
        folder: the folder; made if need be.
        network: its name, a key of `MODELS`.
        options: the options of `create_model` that made it, but for `num_classes`,
            `in_channels` and `dtype`, which the network tells.
        loaded, normalization, class_names: the arguments of `save_weights`.
        license: the license of the weights.

    Raises:
        ValueError: the name and the options are not those of this network, or the
            folder is that of a run.
    """
    told = {
        "num_classes": model.num_classes,
        "in_channels": model.in_channels,
        "dtype": model.dtype.name,
    }
    options = {**told, **(options or {})}
    if abstract_network(network, **options).layers != model.layers:
        raise ValueError(
            f"expected a network of create_model({network!r}, **{options}), got "
            "another one; give the options that made it, such as width"
        )
    place = files.parse_path(folder)
    if is_run(place):
        raise ValueError(
            f"{place} is the folder of a run, whose settings would be lost; give "
            "another"
        )
    place.mkdir(parents=True, exist_ok=True)
    if loaded is not None:
        normalization = normalization or loaded.normalization
        if class_names is None and len(loaded.class_names or ()) == model.num_classes:
            class_names = loaded.class_names
    config: dict[str, Any] = {
        "architecture": network,
        "num_classes": model.num_classes or 0,
        "pretrained_cfg": _timm_config(model, normalization),
        "vgg_jax": {
            "options": options,
            "normalization": normalization and dataclasses.asdict(normalization),
            "lineage": loaded and loaded.lineage,
            "license": license,
        },
    }
    if class_names is not None:
        config["label_names"] = list(class_names)
    save_weights(
        model,
        place / WEIGHTS,
        loaded=loaded,
        normalization=normalization,
        class_names=class_names,
    )
    files.write_text(place / CONFIG, json.dumps(config, indent=2) + "\n")


def _timm_config(model: ConvNet, normalization: Normalization | None) -> dict[str, Any]:
    """Returns what timm wants to know of weights; its pixels are 0-1."""
    config: dict[str, Any] = {
        "num_classes": model.num_classes or 0,
        "input_size": [model.in_channels, 224, 224],
        "first_conv": "features.0",
        "classifier": "head.fc",
    }
    if normalization is not None:
        config["mean"] = [mean / 255 for mean in normalization.mean]
        config["std"] = [std / 255 for std in normalization.std]
    return config


def from_pretrained(
    folder_or_repository: str | os.PathLike[str],
    revision: str | None = None,
    **options: Any,
) -> tuple[ConvNet, Loaded]:
    """Makes a network from a folder of `save_pretrained`, or from one of timm's.

    Args:
        folder_or_repository: a folder, or "owner/name" of a repository of the hub.
        revision: a branch, tag or commit of the repository.
        **options: options of `create_model` that differ, such as num_classes=None.

    Raises:
        FileNotFoundError: a folder without the two files.
        ImportError: the library that fetches from the hub is missing.
        OSError: the repository cannot be fetched.
        ValueError: the files are damaged, or do not belong together.
    """
    place = files.parse_path(folder_or_repository)
    if not place.is_dir():
        place = _from_hub(os.fspath(folder_or_repository), revision)
    network, told, normalization = _read_config(place / CONFIG)
    options = {**told, **options}
    model = abstract_network(network, **options)
    loaded = load_weights(model, place / WEIGHTS)
    complete(model, network, options)
    known = loaded.normalization or normalization
    return model, dataclasses.replace(loaded, normalization=known)


def _read_config(path: Path) -> tuple[str, dict[str, Any], Normalization | None]:
    """Reads the name of a network, its options, and what is done to pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not describe a network; the message names the file.
    """
    config = files.read_json(path)
    match config:
        case {"architecture": str(network), "vgg_jax": {"options": dict(options)}}:
            pass
        case {"architecture": str(network)} if "vgg_jax" not in config:
            options = {"num_classes": config.get("num_classes") or None}
        case _:
            raise ValueError(
                f"{path}: expected the configuration of a network, with its name as "
                "'architecture', and options of save_pretrained or none"
            )
    try:
        channels = abstract_network(network, **options).in_channels
        return network, options, _normalization(config, channels)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        brief = " ".join(str(error).split())
        raise ValueError(
            f"{path}: expected what makes a {network}, and how its images are "
            f"normalized: {brief[:300]}"
        ) from error


def _normalization(config: Mapping[str, Any], channels: int) -> Normalization | None:
    """Returns what timm's configuration says is done to pixels, as for 0-255.

    Raises:
        TypeError, ValueError: it says something else than numbers for these channels.
    """
    own = {**config, **(config.get("pretrained_cfg") or {})}
    mean, std = own.get("mean"), own.get("std")
    if mean is None or std is None:
        return None
    if not isinstance(mean, list) or not isinstance(std, list):
        raise TypeError(f"expected lists as mean and std, got {mean!r} and {std!r}")
    if len(mean) != channels:
        raise ValueError(f"expected a mean of {channels} channels, got {mean!r}")
    return Normalization([255 * value for value in mean], [255 * v for v in std])


def _from_hub(repository: str, revision: str | None) -> Path:
    """Returns the folder in the hub's cache with the two files of a repository."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"fetching {repository} needs {error.name}: {EXTRA}"
        ) from error
    try:
        return files.parse_path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS]
            )
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"{repository}: no such folder, and no repository of the hub can be "
            f"fetched under that name: {' '.join(str(error).split())[:300]}"
        ) from error


def push(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    message: str = "Weights of vgg_jax",
    token: str | None = None,
) -> str:
    """Uploads a folder of `save_pretrained` into a repository of the hub.

    Args:
        folder: the folder.
        repository: "owner/name"; made if need be.
        private: whether a repository that is made is private.
        message: the message of the commit.
        token: the user's token; the one that the hub's own command saved by default.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ImportError: the library that uploads is missing.
        OSError: the hub refuses.
    """
    place = files.parse_path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (place / name).exists():
            raise FileNotFoundError(
                f"{place / name}: no such file; save_pretrained writes it"
            )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"uploading needs {error.name}: {EXTRA}") from error
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=os.fspath(place),
        allow_patterns=[CONFIG, WEIGHTS, "README.md"],
        commit_message=message,
    )
    return str(commit.commit_url)

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
from vgg_jax.weights.load import Loaded, abstract_network, load_weights
from vgg_jax.weights.save import save_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
        ValueError: the name and the options are not those of this network.
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
    config = files.read_json(place / CONFIG)
    own: Any = config.get("vgg_jax", {}) if isinstance(config, dict) else None
    if not isinstance(own, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(
            f"{place / CONFIG}: expected the configuration of a network, with its name "
            "as 'architecture'"
        )
    told = own.get("options") or {"num_classes": config.get("num_classes") or None}
    options = {**told, **options}
    network = config["architecture"]
    model = abstract_network(network, **options)
    loaded = load_weights(model, place / WEIGHTS)
    complete(model, network, options)
    known = loaded.normalization or _normalization(config)
    return model, dataclasses.replace(loaded, normalization=known)


def _normalization(config: Mapping[str, Any]) -> Normalization | None:
    """Returns what timm's configuration says is done to pixels, as for 0-255."""
    own = {**config, **config.get("pretrained_cfg", {})}
    if "mean" not in own or "std" not in own:
        return None
    return Normalization(
        mean=[255 * mean for mean in own["mean"]],
        std=[255 * std for std in own["std"]],
    )


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

"""This module starts runs from a file of weights, of this project or of another one.

With the weights comes what their authors did to pixels: the run does the same.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from etils.epath import Path

from vgg_jax.config import Config, is_default
from vgg_jax.files import beside, parse_path
from vgg_jax.preprocessing import Normalization
from vgg_jax.training.program import abstract_model
from vgg_jax.training.steps import TrainState, split
from vgg_jax.weights.load import Loaded, load_weights
from vgg_jax.weights.published import PUBLISHED, file_digest

CLOSE = 1e-6  # relative difference of two normalizations that are one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The layers that a network takes from a file of weights.

    Args:
        loaded: what came with the weights, and which layers they are.
        digest: the sha256 of the file.
        params, batch_stats: the variables of those layers.
    """

    loaded: Loaded
    digest: str
    params: dict[str, Any]
    batch_stats: dict[str, Any]

    def put_into(self, state: TrainState, init: str) -> TrainState:
        """Returns a new state that has these layers; prints which ones they are.

        Args:
            state: the state whose other layers stay.
            init: how those were drawn, for the line that is printed.
        """
        loaded = self.loaded
        print(
            f"from {loaded.source} ({loaded.format}; "
            f"{loaded.lineage or 'origin unknown'}: {loaded.evidence}): "
            f"{', '.join(loaded.taken)}; random ({init}): "
            f"{', '.join(loaded.kept) or 'none'}",
            *loaded.notes,
            sep="; ",
            flush=True,
        )
        return dataclasses.replace(
            state,
            params=state.params | _placed(self.params, state.params),
            batch_stats=state.batch_stats
            | _placed(self.batch_stats, state.batch_stats),
        )


def weights_path(config: Config, workdir: Path) -> Path | None:
    """Returns the file of weights that `init_from` names; None where it names a run.

    A relative path begins at the current folder or, as the names of runs do, beside the
    run's own folder.
    """
    assert config.init_from is not None
    here = parse_path(config.init_from)
    for path in (here, beside(workdir, config.init_from)):
        if path.exists() and not path.is_dir():
            return path
    return None


def names_weights(config: Config, workdir: Path) -> bool:
    """Returns whether `init_from` names weights, by file or as `PUBLISHED` does.

    A run in a folder of that name goes before published weights.
    """
    assert config.init_from is not None
    if weights_path(config, workdir) is not None:
        return True
    is_run = beside(workdir, config.init_from).exists()
    return not is_run and config.init_from in PUBLISHED


def load_pretrained(config: Config, name: str | Path) -> Pretrained:
    """Reads the weights of a file that fit a configuration's network.

    Args:
        config: the configuration.
        name: the path of the file; or a key of `PUBLISHED`, whose file is fetched.

    The layer of the classes is left out where the file has another number of them. So
    are all fully-connected layers where the file has a trunk alone.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a library that reads the format is missing; the message names it.
        OSError: it cannot be fetched.
        ValueError: the file is damaged, or of another network.
    """
    model = abstract_model(config)
    loaded = load_weights(model, os.fspath(name), trunk=True)
    path = parse_path(name if loaded.path is None else loaded.path)
    _, params, batch_stats = split(model)
    return Pretrained(
        loaded=loaded,
        digest=file_digest(path),
        params={name: params[name] for name in loaded.taken},
        batch_stats={n: batch_stats[n] for n in loaded.taken if n in batch_stats},
    )


def with_normalization(config: Config, normalization: Normalization | None) -> Config:
    """Returns a configuration that does to pixels what the weights of init_from expect.

    Where `data.mean` and `data.std` are those that every configuration has at first
    they become the weights' own, and a line says so. Other values are refused: weights
    that see other pixels than they were trained on fail silently.

    Args:
        config: the configuration.
        normalization: what the weights expect; None where nothing tells it.

    Raises:
        ValueError: the configuration asks for other values.
    """
    source = f"the weights of init_from={config.init_from!r}"
    data = config.data
    if normalization is None:
        print(
            f"{source} do not say what is done to pixels: data.mean={data.mean} and "
            f"data.std={data.std} are left as they are",
            flush=True,
        )
        return config
    mean, std = tuple(normalization.mean), tuple(normalization.std)
    expected = f"data.mean={mean} and data.std={std}"
    if not data.whiten and _close(data.mean, mean) and _close(data.std, std):
        return config
    if data.whiten or not (is_default(data, "mean") and is_default(data, "std")):
        given = f"data.mean={data.mean} and data.std={data.std}"
        raise ValueError(
            f"{source} expect {expected}, got "
            f"{'data.whiten=True' if data.whiten else given}; leave "
            "these settings at their defaults, and they are taken from the weights"
        )
    print(f"{source} expect {expected}: this run uses them", flush=True)
    return dataclasses.replace(
        config, data=dataclasses.replace(data, mean=mean, std=std)
    )


def _close(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=CLOSE, atol=0)


def _placed(layers: dict[str, Any], places: dict[str, Any]) -> dict[str, Any]:
    """Lays arrays on the devices where the arrays of those names lie in `places`."""

    def place(array: jax.Array, old: jax.Array) -> jax.Array:
        values = np.asarray(array)
        # Unlike device_put, this does not make several hosts wait for one another.
        return jax.make_array_from_callback(
            old.shape, old.sharding, lambda index: values[index]
        )

    return {name: jax.tree.map(place, layers[name], places[name]) for name in layers}

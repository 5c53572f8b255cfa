"""This module saves and restores the training state, the latest and the best."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils.epath import Path
from flax import nnx
from orbax.checkpoint import v1 as ocp

from vgg_jax import buckets
from vgg_jax.config import Config
from vgg_jax.distributed import make_mesh, replicated
from vgg_jax.files import is_in_bucket, parse_path, resolve
from vgg_jax.models import ConvNet
from vgg_jax.training.program import abstract_model
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState, split
from vgg_jax.training.workdir import read_config

# The last file of a checkpoint in a bucket.
COMMITTED = "commit_success.txt"

_policies = ocp.training.preservation_policies


class SaveError(RuntimeError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`.

    Two are kept: the latest, and the one with the lowest `metric` on validation. Saving
    goes on behind the training; a save cut short is not seen by the next start, and the
    one before it is taken away only after it.
    """

    def __init__(self, workdir: Path, metric: str, *, read_only: bool):
        self.metric = metric
        self._workdir = workdir
        self._checkpointer = ocp.training.Checkpointer(
            resolve(workdir / "checkpoints"),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                1
            ),
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(1),
                    _policies.BestN(
                        get_metric_fn=lambda metrics: metrics[metric],
                        reverse=True,  # the lowest error
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            # A reader must not take away what a training run is about to save.
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None without any."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation error; the newest if none has any."""
        validated = [c for c in self._checkpointer.checkpoints if c.metrics]
        if not validated:
            return self.latest_step
        return min(validated, key=lambda c: (c.metrics[self.metric], -c.step)).step

    def save(
        self, state: TrainState, plateau: Plateau, errors: Mapping[str, float] | None
    ) -> None:
        """Starts to save; `errors` are those of a validation at this step, if any.

        Raises:
            SaveError: the disk refused it, or the save before it.
        """
        with self._saving():
            self._checkpointer.save_checkpointables_async(
                int(state.step),
                _checkpointables(state),
                metrics=None if errors is None else dict(errors),
                custom_metadata={"plateau": json.dumps(dataclasses.asdict(plateau))},
            )

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            SaveError: the disk refused it.
        """
        with self._saving():
            self._checkpointer.wait()

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Plateau]:
        """Restores the state and the plateau of a step.

        `abstract` gives shapes and shardings, so that the number of devices may differ
        from when the state was saved.
        """
        loaded = self._load(step, _checkpointables(abstract))
        metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        assert isinstance(metadata, dict)
        state = TrainState(
            step=jax.device_put(np.int32(step), abstract.step.sharding),
            params=loaded["params"],
            batch_stats=loaded.get("batch_stats", {}),
            opt_state=loaded["opt_state"],
        )
        return state, Plateau(**json.loads(metadata["plateau"]))

    def load_variables(
        self, params: Any, batch_stats: Any, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Loads the parameters and running statistics of a step, without the optimizer.

        Only those are loaded whose abstract arrays are given.
        """
        wanted = {"params": params}
        if batch_stats:
            wanted["batch_stats"] = batch_stats
        some_of_a_tree = ocp.Context()
        some_of_a_tree.pytree.loading.partial_load = True
        with some_of_a_tree:
            loaded = self._load(step, wanted)
        return loaded["params"], loaded.get("batch_stats", {})

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax has no class of its own for a full disk
            saved = saved_steps(self._workdir)
            last = f"step {saved[-1]}" if saved else "none yet"
            refusal = buckets.explain(error)
            remedy = "Mend that" if refusal else "Is the disk full? Make room"
            raise SaveError(
                f"cannot save in {self._checkpointer.directory}: {refusal or error}. "
                f"Last good checkpoint: {last}. {remedy}; the same command then goes "
                "on from there"
            ) from error

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # Orbax hides the reason behind a "no entry" error
            raise ValueError(
                f"cannot read checkpoint {step} in {self._checkpointer.directory}: "
                f"{error.__cause__ or error}"
            ) from error


def _checkpointables(state: TrainState) -> dict[str, Any]:
    saved = {"params": state.params, "opt_state": state.opt_state}
    if state.batch_stats:  # Orbax refuses an empty tree
        saved["batch_stats"] = state.batch_stats
    return saved


def saved_steps(workdir: Path) -> list[int]:
    """Lists the steps of a run's whole checkpoints, ascending, without opening them."""
    folder = workdir / "checkpoints"
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if _is_whole(path))


def _is_whole(checkpoint: Path) -> bool:
    """Returns whether a path in the folder of checkpoints is one that was completed.

    On a disk a checkpoint takes its name when it is complete; in a bucket, where no
    folder can be renamed at once, Orbax adds a file at the end.
    """
    is_named = checkpoint.name.isdecimal()
    return is_named and (
        not is_in_bucket(checkpoint) or (checkpoint / COMMITTED).exists()
    )


def open_run(workdir: Path) -> tuple[Checkpoints, Config]:
    """Opens the checkpoints of a run for reading, and reads its configuration.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        ValueError: its config.json is damaged.
    """
    config = read_config(workdir)
    if not saved_steps(workdir):
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: its training saved none yet"
        )
    metric = f"validation_{config.optimizer.metric}"
    return Checkpoints(workdir, metric, read_only=True), config


def check_classifies(config: Config, workdir: Path | str) -> None:
    """Checks that the network of a run predicts classes.

    Raises:
        ValueError: it predicts boxes.
    """
    if config.localization is not None:
        raise ValueError(
            f"the network in {workdir} predicts boxes, not classes; evaluate it with "
            f"`python -m vgg_jax.localization --workdir {workdir} "
            "--classifier_workdir RUN`"
        )


def restore_model(
    workdir: Path | str, step: int | None = None
) -> tuple[ConvNet, Config, int]:
    """Restores the trained network of a run.

    Args:
        workdir: the run's folder.
        step: the checkpoint's step; by default that with the lowest validation error.

    Returns:
        The network, the run's configuration and the step.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        ValueError: a checkpoint that cannot be read.
    """
    checkpoints, config = open_run(parse_path(workdir))
    graphdef, params, batch_stats = split(abstract_model(config))
    # All hosts read together, each for a device of its own.
    own = {device.process_index: device for device in reversed(jax.devices())}
    here = replicated(make_mesh(list(own.values())))
    params, batch_stats = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        (params, batch_stats),
    )
    with checkpoints:
        step = checkpoints.best_step if step is None else step
        assert step is not None
        loaded = checkpoints.load_variables(params, batch_stats, step)
    params, batch_stats = jax.tree.map(lambda a: a.addressable_data(0), loaded)
    return nnx.merge(graphdef, params, batch_stats), config, step

"""Checkpoints with Orbax: the latest and the best, parameters on their own."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from vgg_jax.config import Config
from vgg_jax.models import ConvNet, create_model
from vgg_jax.training.optimizer import Plateau
from vgg_jax.training.steps import TrainState, split
from vgg_jax.training.workdir import read_config

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`.

    Two are kept: the latest, and the one with the lowest `metric` on validation. Saving
    goes on behind the training; a save cut short is not seen by the next start.
    """

    def __init__(self, workdir: Path, metric: str, *, read_only: bool):
        self.metric = metric
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / "checkpoints").absolute(),
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
        """The step of the newest checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation error; without any, the newest."""
        validated = [c for c in self._checkpointer.checkpoints if c.metrics]
        if not validated:
            return self.latest_step
        return min(validated, key=lambda c: (c.metrics[self.metric], -c.step)).step

    def save(
        self, state: TrainState, plateau: Plateau, errors: Mapping[str, float] | None
    ) -> None:
        """Start saving; `errors` are those of a validation at this step."""
        self._checkpointer.save_checkpointables_async(
            int(state.step),
            _checkpointables(state),
            metrics=None if errors is None else dict(errors),
            custom_metadata={"plateau": json.dumps(dataclasses.asdict(plateau))},
        )

    def wait(self) -> None:
        """Return when what was saved is on disk."""
        self._checkpointer.wait()

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Plateau]:
        """State and plateau at a step; `abstract` gives shapes and shardings, so that
        the number of devices may differ from when it was saved."""
        loaded = self._load(step, _checkpointables(abstract))
        metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        assert isinstance(metadata, dict)
        state = TrainState(
            step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
            params=loaded["params"],
            batch_stats=loaded.get("batch_stats", {}),
            opt_state=loaded["opt_state"],
        )
        return state, Plateau(**json.loads(metadata["plateau"]))

    def load_variables(
        self, params: Any, batch_stats: Any, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and running statistics alone, for abstract ones."""
        wanted = {"params": params}
        if batch_stats:
            wanted["batch_stats"] = batch_stats
        loaded = self._load(step, wanted)
        return loaded["params"], loaded.get("batch_stats", {})

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


def restore_model(
    workdir: Path | str, step: int | None = None
) -> tuple[ConvNet, Config, int]:
    """The trained network of a run, its configuration and the step it is of.

    Args:
        workdir: of the run.
        step: by default the one with the lowest validation error.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        ValueError: a checkpoint that cannot be read.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    if not (workdir / "checkpoints").exists():
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: its training saved none yet"
        )
    abstract = nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )
    graphdef, params, batch_stats = split(abstract)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, batch_stats = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        (params, batch_stats),
    )
    metric = f"validation_{config.optimizer.metric}"
    with Checkpoints(workdir, metric, read_only=True) as checkpoints:
        step = checkpoints.best_step if step is None else step
        if step is None:
            raise FileNotFoundError(
                f"no checkpoint in {workdir}: its training saved none yet"
            )
        params, batch_stats = checkpoints.load_variables(params, batch_stats, step)
    return nnx.merge(graphdef, params, batch_stats), config, step

"""This module saves and restores the training state, the latest and the best."""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from etils.epath import Path
from flax import nnx
from orbax.checkpoint import v1 as ocp

from vgg_jax import buckets, distributed
from vgg_jax.config import Config
from vgg_jax.distributed import make_mesh, replicated, warn
from vgg_jax.files import (
    is_in_bucket,
    parse_path,
    read_json,
    resolve,
    text_digest,
    write_text,
)
from vgg_jax.models import ConvNet
from vgg_jax.training.program import abstract_model
from vgg_jax.training.schedule import Plateau
from vgg_jax.training.steps import TrainState, split
from vgg_jax.training.workdir import orbax_repairs
from vgg_jax.training.workdir.digest import digests, leaves_by_name
from vgg_jax.training.workdir.facts import read_config
from vgg_jax.training.workdir.weights_folder import read_facts, restore_weights

orbax_repairs.apply()

METADATA = "_CHECKPOINT_METADATA"
INDICATOR = "orbax.checkpoint"  # an empty file that every checkpoint has
COMMITTED = "commit_success.txt"  # the last file of a checkpoint in a bucket
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of one that is not yet complete

# What Orbax and TensorStore say of a store that cannot be read now, so that a
# checkpoint there may be as it was saved.
_UNREACHABLE = (
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("RESOURCE_EXHAUSTED", "Permission denied", "Too many open files", "MemoryError"),
)

T = TypeVar("T")


class SaveError(RuntimeError):
    """A checkpoint could not be written."""


class DamagedCheckpoint(ValueError):
    """A checkpoint does not hold what was saved; the message says what differs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What is saved beside the arrays of a checkpoint.

    Args:
        step: the number of steps before it.
        plateau: the state of the learning rate's schedule.
        errors: those of a validation at this step, if there was any.
        digests: the digest of each array; none in a checkpoint of an earlier version.
    """

    step: int
    plateau: Plateau
    errors: dict[str, float] | None
    digests: dict[str, str] | None

    def to_metadata(self) -> dict[str, str]:
        """Returns the record as the metadata of a checkpoint, with its own digest."""
        text = json.dumps(dataclasses.asdict(self))
        return {"record": text, "digest": text_digest(text)}


def read_record(checkpoint: Path) -> Record:
    """Reads the record of a checkpoint, which is in a folder with its step's name.

    Raises:
        FileNotFoundError: there is none.
        DamagedCheckpoint: it is not what was saved.
    """
    step = int(checkpoint.name)
    try:
        metadata = read_json(checkpoint / METADATA)["custom_metadata"]
        if "record" not in metadata:  # of an earlier version
            metrics = checkpoint / "metrics" / "metrics"
            return Record(
                step=step,
                plateau=Plateau(**json.loads(metadata["plateau"])),
                errors=read_json(metrics) if metrics.exists() else None,
                digests=None,
            )
        fields = json.loads(metadata["record"])
        record = Record(**fields | {"plateau": Plateau(**fields["plateau"])})
        is_intact = text_digest(metadata["record"]) == metadata["digest"]
    except FileNotFoundError as error:
        if not _is_whole(checkpoint):  # a training run has just taken it away
            raise
        raise DamagedCheckpoint(
            f"checkpoint {checkpoint} is damaged: its {METADATA} is missing"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(
            f"checkpoint {checkpoint} is damaged: its {METADATA} cannot be read"
        ) from error
    if not is_intact or record.step != step:
        raise DamagedCheckpoint(
            f"checkpoint {checkpoint} is damaged: its {METADATA} is not what was saved"
        )
    return record


class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`.

    Two are kept: the latest, and the one with the lowest `metric` on validation. Saving
    goes on behind the training; a save cut short is not seen by the next start, and the
    one before it is taken away only after it. What is restored is what was saved: the
    digests of all arrays are kept with them and compared.

    Args:
        workdir: the run's folder.
        metric: the name of the validation error that says which is the best.
        read_only: whether nothing is to be changed there. A reader must not take away
            what a training run is about to save.
    """

    def __init__(self, workdir: Path, metric: str, *, read_only: bool):
        self.metric = metric
        self._workdir = workdir
        self._folder = resolve(workdir) / "checkpoints"
        self._records: dict[int, Record] = {}
        self._damage: dict[int, DamagedCheckpoint] = {}
        self._saving: tuple[Record, ocp.AsyncResponse[None]] | None = None
        self._is_writer = not read_only and distributed.is_first()
        if self._is_writer:
            _remove_remains(self._folder)
        self._read_records()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The error that ends the block says more than that of a save.
        ignored = (SaveError,) if kind is not None else ()
        with contextlib.suppress(*ignored):
            self.wait()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None without any."""
        return max(self._records, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation error; the newest if none has any."""
        errors = {
            step: record.errors[self.metric]
            for step, record in self._records.items()
            if record.errors
        }
        if not errors:
            return self.latest_step
        return min(errors, key=lambda step: (errors[step], -step))

    def is_validated(self, step: int) -> bool:
        """Returns whether the checkpoint of a step has errors; True without one."""
        return step not in self._records or self._records[step].errors is not None

    def save(
        self, state: TrainState, plateau: Plateau, errors: Mapping[str, float] | None
    ) -> None:
        """Starts to save; `errors` are those of a validation at this step, if any.

        A checkpoint of the same step, saved without them, is given them.

        Raises:
            SaveError: the disk refused it, or the save before it.
        """
        self.wait()
        arrays = _checkpointables(state)
        record = Record(
            step=int(state.step),
            plateau=dataclasses.replace(plateau),
            errors=None if errors is None else dict(errors),
            digests=digests(arrays),
        )
        if record.step in self._records:
            self._add_errors(record)
            return
        with self._naming_last_good():
            response = ocp.save_checkpointables_async(
                self._folder / str(record.step),
                arrays,
                # What has this name and is no checkpoint of the run is no loss.
                overwrite=True,
                custom_metadata=record.to_metadata(),
            )
        self._saving = record, response

    def wait(self) -> None:
        """Waits until what was saved is on disk, and takes older ones away.

        Raises:
            SaveError: the disk refused it.
        """
        if self._saving is None:
            return
        record, response = self._saving
        with self._naming_last_good():
            # Its result must be taken: until then it keeps a thread and descriptors.
            response.result()
        self._saving = None
        self._keep(record)

    def _add_errors(self, record: Record) -> None:
        """Gives a whole checkpoint the errors of a validation that came later."""
        with self._naming_last_good():
            if self._is_writer:
                path = self._folder / str(record.step) / METADATA
                metadata = {"custom_metadata": record.to_metadata()}
                write_text(path, json.dumps(read_json(path) | metadata))
        self._keep(record)

    def _keep(self, record: Record) -> None:
        """Notes what was saved last, and takes what is neither that nor the best."""
        self._records[record.step] = record
        for step in self._records.keys() - {self.latest_step, self.best_step}:
            del self._records[step]
            if self._is_writer:
                _remove(self._folder / str(step))

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Plateau]:
        """Restores the state and the plateau of a step.

        `abstract` gives shapes and shardings, so that the number of devices may differ
        from when the state was saved.

        Raises:
            DamagedCheckpoint: it is not what was saved.
            ValueError: it cannot be read.
        """
        loaded = self._load(step, _checkpointables(abstract))
        state = TrainState(
            step=jax.device_put(np.int32(step), abstract.step.sharding),
            params=loaded["params"],
            batch_stats=loaded.get("batch_stats", {}),
            opt_state=loaded["opt_state"],
        )
        return state, dataclasses.replace(self._records[step].plateau)

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, Plateau] | None:
        """Restores the state and the plateau of the newest intact step.

        Newer ones, which are damaged, are named in a warning and set aside.

        Returns:
            The state and the plateau; None where there is no checkpoint.

        Raises:
            ValueError: none of the checkpoints is intact, or one cannot be read.
        """
        if not self._records and not self._damage:
            return None
        step, restored = self._first_intact(
            lambda: sorted({*self._records, *self._damage}, reverse=True),
            lambda step: self.restore(abstract, step),
        )
        for newer in [damaged for damaged in sorted(self._damage) if damaged > step]:
            self._records.pop(newer, None)
            error, path = self._damage.pop(newer), self._folder / str(newer)
            renamed = f" was renamed {_set_aside(path)} and" if self._is_writer else ""
            warn(
                f"{error}; it{renamed} is not used, and the run goes on from step "
                f"{step}, the newest intact one. To go back to {newer}, stop the run "
                f"and put a whole copy in the place of {path}"
            )
        return restored

    def load_best(
        self, params: Any, batch_stats: Any
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Loads the variables of the best step, or of the newest one that is intact.

        Damaged checkpoints are named in a warning.

        Returns:
            The step, the parameters and the running statistics.

        Raises:
            ValueError: none of the checkpoints is intact, or one cannot be read.
        """

        def best_first() -> list[int]:
            newest_first = sorted({*self._records, *self._damage}, reverse=True)
            # What cannot be read may have been the best: it is named first.
            order = (*self._damage, self.best_step, *newest_first)
            return [step for step in dict.fromkeys(order) if step is not None]

        step, loaded = self._first_intact(
            best_first, lambda step: self.load_variables(params, batch_stats, step)
        )
        for error in self._damage.values():
            warn(
                f"{error}; step {step}, the newest intact one, is used in its place. "
                "To go back, put a whole copy there"
            )
        return step, *loaded

    def load_variables(
        self, params: Any, batch_stats: Any, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Loads the parameters and running statistics of a step, without the optimizer.

        Only those are loaded whose abstract arrays are given.

        Raises:
            DamagedCheckpoint: it is not what was saved.
            ValueError: it cannot be read.
        """
        wanted = {"params": params}
        if batch_stats:
            wanted["batch_stats"] = batch_stats
        loaded = self._load(step, wanted, is_partial=True)
        return loaded["params"], loaded.get("batch_stats", {})

    def _read_records(self) -> None:
        """Reads the records of all checkpoints."""
        self._records, self._damage = {}, {}
        for step in saved_steps(self._workdir):
            try:
                self._records[step] = read_record(self._folder / str(step))
            except DamagedCheckpoint as error:
                self._damage[step] = error
            except FileNotFoundError:  # a training run has just taken it away
                continue

    def _first_intact(
        self, order: Callable[[], Sequence[int]], load: Callable[[int], T]
    ) -> tuple[int, T]:
        """Loads the first of some steps that is intact on every host.

        Args:
            order: gives the steps, the most wanted first; the first host's counts.
            load: loads a step.

        Returns:
            The step and what was loaded.
        """
        for step in distributed.from_first(order()):
            damage, loaded = self._damage.get(step), None
            try:
                loaded = load(step) if damage is None else None
            except DamagedCheckpoint as error:
                damage = error
            if not distributed.on_any(damage is not None):
                return step, cast(T, loaded)
            if distributed.on_any(not _is_whole(self._folder / str(step))):
                # A training run has taken it away meanwhile, and saved another.
                self._read_records()
                return self._first_intact(order, load)
            self._damage[step] = damage or DamagedCheckpoint(
                f"checkpoint {self._folder / str(step)} is damaged on another host"
            )
        raise ValueError(
            "no checkpoint is intact, so there is nothing to go on from: "
            + "; ".join(str(self._damage[step]) for step in sorted(self._damage))
            + f". Put a whole copy in the place of one; or move {self._folder} away to "
            "train from the start"
        )

    def _load(
        self, step: int, wanted: dict[str, Any], *, is_partial: bool = False
    ) -> dict[str, Any]:
        """Loads arrays of a step, or some of them, and compares their digests."""
        if step in self._damage:
            raise self._damage[step]
        path = self._folder / str(step)
        context = ocp.Context()
        context.pytree.loading.partial_load = is_partial
        # No host waits for the others, so that one which finds damage can say it.
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
        try:
            with context:
                loaded = ocp.load_checkpointables(path, wanted)
        except Exception as error:
            raise _explain(error, path) from error
        # What a checkpoint's own list of arrays lacks is left as it was asked for.
        for name, leaf in leaves_by_name(loaded).items():
            if not isinstance(leaf, jax.Array):
                raise DamagedCheckpoint(
                    f"checkpoint {path} is damaged: it cannot be read ({name} is not "
                    "listed in it)"
                )
        saved = self._records[step].digests
        if saved is not None:
            changed = [
                name
                for name, digest in digests(loaded).items()
                if saved.get(name) != digest
            ]
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise DamagedCheckpoint(
                    f"checkpoint {path} is damaged: {changed[0]}{more} is not what was "
                    "saved"
                )
        return loaded

    @contextlib.contextmanager
    def _naming_last_good(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax has no class of its own for a full disk
            self._saving = None
            saved = saved_steps(self._workdir)
            last = f"step {saved[-1]}" if saved else "none yet"
            refusal = buckets.explain(error)
            remedy = "Mend that" if refusal else "Is the disk full? Make room"
            raise SaveError(
                f"cannot save in {self._folder}: {refusal or error}. Last good "
                f"checkpoint: {last}. {remedy}; the same command then goes on from "
                "there"
            ) from error


def _explain(error: Exception, path: Path) -> ValueError:
    """Makes the error to raise where Orbax could not load a checkpoint."""
    cause = error.__cause__ or error  # Orbax hides it behind a "no entry" error
    if refusal := buckets.explain(cause):
        return ValueError(f"cannot read checkpoint {path}: {refusal}")
    # TensorStore goes on with its whole specification.
    words = " ".join(str(cause).partition("[tensorstore_spec")[0].split())
    reason = f"{type(cause).__name__}: {words}"
    if any(word in reason for word in _UNREACHABLE):
        return ValueError(f"cannot read checkpoint {path}: {reason}")
    return DamagedCheckpoint(
        f"checkpoint {path} is damaged: it cannot be read ({reason})"
    )


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


def _is_whole(path: Path) -> bool:
    """Returns whether a path is that of a checkpoint whose saving came to its end.

    On a disk a checkpoint has its name while it is complete; in a bucket, where no
    folder can be renamed at once, Orbax adds a file at the end. What was lost of it
    since is damage: one of two files says that it was a checkpoint.
    """
    return (
        path.name.isdecimal()
        and ((path / METADATA).exists() or (path / INDICATOR).exists())
        and (not is_in_bucket(path) or (path / COMMITTED).exists())
    )


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint away; what cannot be removed now is by the next start."""
    with contextlib.suppress(OSError, *buckets.errors()):
        # First it is made what is no checkpoint, lest a half be taken for damage.
        if is_in_bucket(checkpoint):
            (checkpoint / COMMITTED).unlink()
        else:
            name = f"{checkpoint.name}{UNFINISHED}-removed"
            checkpoint = checkpoint.rename(checkpoint.parent / name)
        checkpoint.rmtree()


def _remove_remains(folder: Path) -> None:
    """Takes away what a killed save and a killed removal left; other files stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        name = re.fullmatch(rf"[0-9]+({re.escape(UNFINISHED)}.*)?", path.name)
        is_half = not _is_whole(path) and (path / "params").is_dir()
        if name and (name[1] or is_half):
            with contextlib.suppress(OSError, *buckets.errors()):
                path.rmtree()


def _set_aside(checkpoint: Path) -> str:
    """Gives a damaged checkpoint a name that is none of a step; returns the name."""
    names = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    for suffix in names:
        aside = checkpoint.parent / f"{checkpoint.name}.damaged{suffix}"
        if not aside.exists():
            checkpoint.rename(aside)
            break
    return aside.name


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
        ValueError: it predicts boxes, or has foreign weights without a classifier.
    """
    facts = read_facts(parse_path(workdir)) or {}
    if random_layers := facts.get("random_layers"):
        raise ValueError(
            f"{facts['weights']} has no weights for {', '.join(random_layers)} of this "
            f"{config.model.name} with {config.model.num_classes} classes, so it names "
            f"none; train them: --config.init_from={facts['weights']}"
        )
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
        workdir: the run's folder, or one that `make_weights_folder` made, whose step
            is 0.
        step: the checkpoint's step; by default that with the lowest validation error,
            or where it is damaged the newest intact one, with a warning.

    Returns:
        The network, the run's configuration and the step.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        ValueError: a checkpoint that cannot be read.
    """
    workdir = parse_path(workdir)
    facts = read_facts(workdir)
    if facts is not None:
        return (*restore_weights(workdir, facts), 0)
    checkpoints, config = open_run(workdir)
    graphdef, params, batch_stats = split(abstract_model(config))
    # All hosts read together, each for a device of its own.
    own = {device.process_index: device for device in reversed(jax.devices())}
    here = replicated(make_mesh(list(own.values())))
    params, batch_stats = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        (params, batch_stats),
    )
    with checkpoints:
        if step is None:
            step, params, batch_stats = checkpoints.load_best(params, batch_stats)
        else:
            params, batch_stats = checkpoints.load_variables(params, batch_stats, step)
    params, batch_stats = jax.tree.map(
        lambda a: a.addressable_data(0), (params, batch_stats)
    )
    return nnx.merge(graphdef, params, batch_stats), config, step

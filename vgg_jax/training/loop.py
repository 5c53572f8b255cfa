"""This module has the training loop of section 3.1: step, log, validate, save."""

import contextlib
import dataclasses
import math
import platform
import signal
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils.epath import Path

from vgg_jax import distributed
from vgg_jax.compilation import onednn_options
from vgg_jax.config import Config, shared_settings
from vgg_jax.data import transforms
from vgg_jax.data.base import sample_digest
from vgg_jax.data.color import load_axes
from vgg_jax.data.folder import refuse_inside
from vgg_jax.data.on_device import Coming, DeviceSet, put_on_devices
from vgg_jax.data.pipeline import train_batches
from vgg_jax.data.sources import open_source, open_training
from vgg_jax.data.zca import whitening_digest
from vgg_jax.distributed import make_mesh, shard_batch, warn
from vgg_jax.files import parse_path
from vgg_jax.inference.passes import View, over_source
from vgg_jax.interrupt import Interrupt, StopRequested
from vgg_jax.memory import (
    naming_settings,
    training_advice,
    validate_state_fits,
)
from vgg_jax.models.measure import summary
from vgg_jax.training.compiled import FIRST_WORK, CompiledStep
from vgg_jax.training.diagnosis import StallDetector, diagnosis
from vgg_jax.training.init_from import prepare_start, take_weights
from vgg_jax.training.kept_maps import KeptMaps
from vgg_jax.training.metrics import (
    RunLog,
    TrainingDiverged,
    Window,
    summarize_validation,
)
from vgg_jax.training.objectives import ExampleMetrics, task_for, with_num_classes
from vgg_jax.training.optimizer import set_learning_rate
from vgg_jax.training.pretrained import Pretrained, weights_path
from vgg_jax.training.program import (
    abstract_model,
    build_program,
    platform_of,
    validate_settings,
    with_choices_for,
)
from vgg_jax.training.schedule import (
    Plateau,
    Timetable,
    learning_rate_at,
)
from vgg_jax.training.steps import Batch, TrainState
from vgg_jax.training.trace import Trace
from vgg_jax.training.workdir.checkpoint import Checkpoints, saved_steps
from vgg_jax.training.workdir.facts import (
    check_class_names,
    check_data_facts,
    claim,
    mark_finished,
    read_config,
    refuse_other_run,
    with_stored_choices,
    write_class_names,
    write_data_facts,
)
from vgg_jax.training.workdir.lock import WorkdirLock
from vgg_jax.weights.published import file_digest

# Images to train on, from which on what costs seconds at each start on CPU makes good.
LONG_RUN = 64_000


def train(
    config: Config, workdir: Path | str, *, profile_steps: int = 0
) -> signal.Signals | None:
    """Trains until `num_epochs`, or until the plateau after the rate's last fall.

    Where `workdir` holds a run of the same configuration, that run goes on from its
    last checkpoint: the steps are those of an uninterrupted run, to the bit.

    Args:
        config: the settings of the run.
        workdir: the folder of the run.
        profile_steps: how many steps are traced, into the folder `profile` of the
            workdir.

    Returns:
        None at the end; before it, the signal that stopped the run.

    Raises:
        WorkdirMismatch: the folder holds a run with other settings.
        WorkdirHeld: another training writes into the folder.
        WorkdirLost: the folder was removed while the run trained.
        TrainingDiverged: the message names the last good checkpoint.
        SaveError: a checkpoint could not be written.
        OutOfMemory: the message names settings that make the step smaller.
        ValueError: settings that do not fit one another, images that cannot be read, or
            hosts that do not agree.
        KeyboardInterrupt: a signal came before the first step, when there was nothing
            to save, or a second Ctrl-C.
    """
    return Trainer(config, workdir, profile_steps).run()


class Trainer:
    """A run: its settings, its data, its compiled steps, and the loop over them."""

    def __init__(self, config: Config, workdir: Path | str, profile_steps: int = 0):
        self.workdir = workdir = parse_path(workdir)
        self.trace = Trace(workdir / "profile", profile_steps)
        self.mesh = make_mesh()
        begun = max(saved_steps(workdir), default=0)
        distributed.agree(
            shared_settings(config)
            | {"workdir": workdir.name, "step to go on from": begun}
        )
        # What can be refused without data is: they may have to be prepared first.
        validate_settings(config, self.mesh.size)
        refuse_other_run(workdir, config)
        if config.data.dataset == "folder":
            refuse_inside(config.data.data_dir, workdir)
        if config.model.num_classes is None:
            class_names = open_source(config.data, "train").class_names
            config = with_num_classes(config, len(class_names))
        self.pretrained: Pretrained | None = None
        if saved_steps(workdir):
            config = with_stored_choices(config, read_config(workdir))
        elif config.init_from is not None:
            config, self.pretrained = prepare_start(config, workdir)
        # What the folder keeps leaves shard_fc to the devices of the next start.
        self.settled = with_choices_for(self.mesh, config)
        config = dataclasses.replace(config, model=self.settled.model)
        self.program = build_program(config, self.mesh)
        validate_state_fits(self.program.state)
        self.training, self.validation = open_training(config.data)
        self.config = with_num_classes(config, len(self.training.class_names))
        self.task = task_for(config)
        self.metric = f"validation_{config.optimizer.metric}"
        self.timetable = Timetable.for_config(config, len(self.training))
        images = self.timetable.total_steps * config.batch_size
        self.is_long = images >= LONG_RUN
        self._choose_compiler()
        self._init_key, self._dropout_key = jax.random.split(
            jax.random.key(config.seed)
        )
        self.kept: KeptMaps | None = None
        self.kept_validation: KeptMaps | None = None
        self.device_set: DeviceSet | None = None
        self.stall_detector = StallDetector(config, self.timetable.steps_per_epoch)
        self.facts = self._agree_on_data()

    def run(self) -> signal.Signals | None:
        """Runs the loop until the end or a signal, which it returns as `train` does."""
        with WorkdirLock(self.workdir) as lock:
            self.claim_workdir()
            with (
                Checkpoints(self.workdir, self.metric, read_only=False) as checkpoints,
                Interrupt() as interrupt,
                _naming_last_checkpoint(checkpoints),
            ):
                state, plateau = self._start(checkpoints)
                step = int(state.step)
                if not self._is_at_end(step, plateau):
                    if self.program.first_row:
                        self._keep_maps(state)
                    elif self._keeps_at_once():
                        self._use_kept(self._keep_images())
                return self._loop(state, plateau, checkpoints, interrupt, lock)

    def _loop(
        self,
        state: TrainState,
        plateau: Plateau,
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        lock: WorkdirLock,
    ) -> signal.Signals | None:
        """Trains from a state on; returns what `run` does."""
        timetable = self.timetable
        start = int(state.step)
        with (
            naming_settings("a training step", self._advice()),
            RunLog(self.workdir, timetable, self.task.errors, start) as log,
            contextlib.closing(self._batches(start)) as batches,
            CompiledStep(
                self.program, self.compiler_options, self.first_steps
            ) as train_step,
            self.trace as trace,
        ):
            step, stopped = start, None

            def write_line() -> None:
                window = log.take_window()
                if window is not None:
                    lock.confirm()
                    self._log(log, window, state, batch)

            def save(errors: dict[str, float] | None) -> None:
                lock.confirm()
                log.flush()  # what led to a checkpoint is kept before it
                checkpoints.save(state, plateau, errors)

            def validate_and_save() -> signal.Signals | None:
                """Returns the signal that stopped the validation, if one did."""
                trace.end("a validation came")  # it has more steps than one asks for
                errors, stopped = self._validate(state, step, interrupt)
                if errors is not None:
                    log.write_validation(step, errors)
                    if timetable.updates_plateau(step):
                        plateau.update(errors[self.metric], self.config.optimizer)
                save(errors)
                return stopped

            # A signal keeps the validation after a step for the next start.
            if timetable.validates(step) and not checkpoints.is_validated(step):
                stopped = validate_and_save()
            while stopped is None and not self._is_at_end(step, plateau):
                rate = learning_rate_at(step, timetable, plateau, self.config.optimizer)
                counts = not train_step.is_early(step)
                with trace.step(step, counts=counts):
                    batch = log.next_batch(batches)
                    opt_state = set_learning_rate(state.opt_state, rate)
                    state = dataclasses.replace(state, opt_state=opt_state)
                    state, sums = train_step(step, state, batch, self._dropout_key)
                step += 1
                interrupt.postpone()  # from here on there is a step to save
                log.add(step, sums)
                log.leave_out(trace.add(sums, counts=counts))
                stopped = interrupt.requested()  # once: it can come at any moment
                saves = timetable.saves(step) or stopped is not None
                write_line()  # of the window that ended with the step before
                if saves or timetable.logs(step):
                    log.end_window(step, rate)
                if saves:  # nothing is saved or validated before its loss was read
                    write_line()
                if timetable.validates(step) and stopped is None:
                    stopped = validate_and_save()
                elif saves:
                    save(None)
                if saves:
                    log.restart_clock(step)  # the speed is that of training alone
            checkpoints.wait()
            lock.confirm()
            self._conclude(checkpoints, step, stopped)
        return stopped

    def _agree_on_data(self) -> dict[str, Any]:
        """Returns the facts of the data, which are the same on all hosts."""
        try:
            open_source(self.config.data, "test")
        except (OSError, ValueError) as error:
            warn(f"nothing for eval.py to test on: {error}")
        is_shifted = self.config.data.color_shift > 0
        axes = load_axes(self.config.data).tolist() if is_shifted else None
        facts = {
            "images to train on": len(self.training),
            "images to validate with": len(self.validation),
            "axes of the color shift": axes,
            "whitening": whitening_digest(self.config.data),
        }
        if (digest := self._digest_of_weights()) is not None:
            facts["sha256 of init_from"] = digest
        distributed.agree(
            facts
            | {
                "classes": self.training.class_names,
                "images": sample_digest(self.training),
            }
        )
        return facts

    def claim_workdir(self) -> None:
        """Makes the folder this run's, for one that holds its lock.

        Raises:
            WorkdirMismatch: it holds a run on other data or with other settings.
        """
        facts = self.facts
        if saved_steps(self.workdir):
            check_class_names(self.workdir, self.training.class_names)
            facts = check_data_facts(self.workdir, facts)
        claim(self.workdir, self.config)
        write_class_names(self.workdir, self.training.class_names)
        write_data_facts(self.workdir, facts)

    def _digest_of_weights(self) -> str | None:
        """Returns the sha256 of the file that `init_from` names, if it is at hand."""
        if self.pretrained is not None:
            return self.pretrained.digest
        if self.config.init_from is None:
            return None
        path = weights_path(self.config, self.workdir)
        return None if path is None else file_digest(path)

    def _start(self, checkpoints: Checkpoints) -> tuple[TrainState, Plateau]:
        """Makes a new state, or restores the newest intact one that was saved."""
        restored = checkpoints.restore_newest(self.program.state)
        if restored is None:
            state, plateau = self.program.init(self._init_key), Plateau()
            if self.pretrained is not None:
                state = self.pretrained.put_into(state, self.config.model.init)
            elif self.config.init_from is not None:
                state = take_weights(state, self.config, self.workdir)
        else:
            state, plateau = restored
        step = int(state.step)
        parameters = sum(p.size for p in jax.tree.leaves(state.params))
        device = self.mesh.devices.flat[0]
        print(
            f"{self.config.model.name}: {parameters:,} parameters; "
            f"{len(self.training):,} images to train on, "
            f"{len(self.validation):,} to validate; "
            f"{self.mesh.size} x {device.device_kind}; "
            + (f"step {step:,}" if step else "from the start")
            + f" to {self.timetable.total_steps:,}; computes in "
            f"{self.settled.model.dtype}"
            + (", fc6 to fc8 shared out" if self.settled.shard_fc else "")
            + (", convolutions by oneDNN" if self.compiler_options else ""),
            flush=True,
        )
        if not self._is_at_end(step, plateau):
            mark_finished(self.workdir, False)
        return state, plateau

    def _keep_maps(self, state: TrainState) -> None:
        """Computes what the layers that rest make of all images, and keeps it."""
        network = self.program.network(state)
        sources = {True: self.training, False: self.validation}
        self.kept, self.kept_validation = (
            KeptMaps.of_source(
                network,
                source,
                self.config,
                self.mesh,
                rows=self.program.first_row,
                flip=self.config.data.flip and is_training,
            )
            for is_training, source in sources.items()
        )
        maps = self.kept.maps
        print(
            f"kept the maps before the first layer that learns, {list(maps.shape[2:])} "
            f"of each image{' and its mirror image' * (maps.shape[1] - 1)}: "
            f"{maps.nbytes / 2**20:,.0f} MiB",
            flush=True,
        )

    def _keeps_at_once(self) -> bool:
        """Returns whether it is settled before training if the devices keep the images.

        Several hosts settle it together. Corrupt images that are left out are to be
        named once. What was asked for, by `data.on_device`, may fail.
        """
        data = self.config.data
        is_asked = data.on_device is not None or data.on_corrupt_image == "skip"
        return is_asked or distributed.several()

    def _keep_images(
        self, cancelled: threading.Event | None = None
    ) -> DeviceSet | None:
        """Puts the training images on the devices, if that is for them."""
        if self.task.with_boxes:
            return None
        with naming_settings("the training set", ["data.on_device=False"]):
            return put_on_devices(
                self.training,
                self.config.data,
                self.mesh,
                channels=self.config.model.in_channels,
                on_cpu=self.is_long,
                cancelled=cancelled,
            )

    def _use_kept(self, device_set: DeviceSet | None) -> None:
        """Takes crops from images on the devices from now on, if there are any."""
        self.device_set = device_set
        if device_set is not None:
            size = device_set.images.nbytes / 2**20
            print(f"kept the images on the devices: {size:,.0f} MiB", flush=True)

    def _advice(self) -> Iterator[str]:
        """Yields settings with which the step needs less memory, the mildest first."""
        if self.device_set is not None:
            yield "data.on_device=False"
        yield from training_advice(self.settled, self.mesh.size)

    def _choose_compiler(self) -> None:
        """Has oneDNN compute the step's convolutions where that is wanted and there."""
        device, dtype = platform_of(self.mesh), str(self.settled.model.dtype)
        options = onednn_options(dtype) if device == "cpu" else {}
        is_asked = self.config.onednn is True
        if self.config.onednn is None:  # kept, so that a run that grows stays as it was
            is_wanted = self.is_long and bool(options)
            self.config = dataclasses.replace(self.config, onednn=is_wanted)
        self.compiler_options: Mapping[str, bool | str] = {}
        self.first_steps = 0
        if self.config.onednn and options:
            image = summary(abstract_model(self.config), self.config.data.crop)
            work = image.multiply_adds * self.config.batch_size
            self.first_steps = math.ceil(FIRST_WORK / work)
            if self.timetable.total_steps > self.first_steps:
                self.compiler_options = options
            elif is_asked:
                warn(
                    f"onednn=True: the first {self.first_steps:,} steps of a run are "
                    "without it, while it compiles, and this run has "
                    f"{self.timetable.total_steps:,}"
                )
        elif self.config.onednn:
            warn(
                f"onednn=True: this jaxlib has none for {dtype} on {device} "
                f"({platform.machine()}); XLA's own convolutions are used"
            )

    def _is_at_end(self, step: int, plateau: Plateau) -> bool:
        return step >= self.timetable.total_steps or plateau.finished

    def _log(
        self, log: RunLog, window: Window, state: TrainState, batch: Batch
    ) -> None:
        """Logs the steps of a window; warns of a loss that does not move.

        `state` and `batch` are those of the last step that was given to the devices.
        """
        values = log.summarize(window)
        is_kept = self.kept is not None  # whose batches the diagnosis cannot take
        if not is_kept and self.stall_detector.update(
            len(window.sums), values["train_loss"]
        ):
            values["stuck"] = 1.0
            warn(diagnosis(self.config, self.stall_detector, state, batch))
        log.write_training(window.last_step, values)

    def _validate(
        self, state: TrainState, step: int, interrupt: Interrupt
    ) -> tuple[dict[str, float] | None, signal.Signals | None]:
        """Measures loss and errors on center crops of the validation images.

        Returns:
            What was measured, or else the signal that came before the end.
        """
        head = ExampleMetrics(self.task.objective, self.task.with_boxes)
        view = View(self.config.evaluation.center_scale, transforms.center)
        network = self.program.network(state)
        try:
            if self.kept_validation is not None:
                rows = self.kept_validation.measure(
                    network,
                    head,
                    self.config.evaluation.crops_at_once(1),
                    interrupt.stop_if_requested,
                )
                return self._summary(rows, step), None
            rows = over_source(
                network,
                head,
                self.validation,
                self.config,
                view,
                with_boxes=self.task.with_boxes,
                mesh=self.mesh,
                before_batch=interrupt.stop_if_requested,
            )
        except StopRequested as stop:
            return None, stop.signal
        return self._summary(rows, step), None

    def _summary(self, rows: dict[str, np.ndarray], step: int) -> dict[str, float]:
        """Returns the means of what was measured of each validation image."""
        names = ("loss", *self.task.errors, "weight")
        sums = {name: rows[name].sum(dtype=np.float64) for name in names}
        return summarize_validation(sums, step)

    def _batches(self, step: int) -> Generator[Batch]:
        """Gives the training batches after the first `step`, on the devices, endless.

        The host reads images until they are kept on the devices, if they come to be.
        """
        place: dict[str, Any] = {
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        if self.kept is not None:
            for maps in self.kept.train_batches(start_step=step, **place):
                yield shard_batch(self.mesh, maps)
        if self.device_set is None:
            with contextlib.closing(self._read(start_step=step, **place)) as read:
                for batch in read:
                    yield batch
                    step += 1
        assert self.device_set is not None  # for which alone the host stops reading
        draws = self.device_set.train_draws(start_step=step, **place)
        with contextlib.closing(draws):
            for rows in draws:
                yield self.device_set.cut(shard_batch(self.mesh, rows))

    def _read(self, **place: Any) -> Generator[Batch]:
        """Gives batches that the host reads, until the images are on the devices."""
        with contextlib.ExitStack() as stack:
            batches = train_batches(
                self.training,
                self.config.data,
                channels=self.config.model.in_channels,
                with_boxes=self.task.with_boxes,
                **place,
            )
            stack.enter_context(contextlib.closing(batches))
            coming: Coming | None = None
            for batch in batches:
                yield shard_batch(self.mesh, batch)
                if coming is None and not self._keeps_at_once():
                    # Not before the first step, which is what people wait for.
                    coming = stack.enter_context(Coming(self._keep_images))
                if coming is not None and coming.is_there():
                    self._use_kept(coming.result())
                    if self.device_set is not None:
                        return

    def _conclude(
        self, checkpoints: Checkpoints, step: int, stopped: signal.Signals | None
    ) -> None:
        """Says how the run ended; marks one that came to its end."""
        if stopped is not None:
            print(
                f"stopped at step {step}, saved in {self.workdir}; "
                "the same command goes on from there"
            )
            return
        mark_finished(self.workdir, True)
        print(
            f"finished at step {step}; lowest validation error at step "
            f"{checkpoints.best_step}, in {self.workdir}"
        )


@contextlib.contextmanager
def _naming_last_checkpoint(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds the last good checkpoint to the message of a run that diverges."""
    try:
        yield
    except TrainingDiverged as error:
        checkpoints.wait()
        latest = checkpoints.latest_step
        raise TrainingDiverged(
            f"{error}; last good checkpoint: "
            f"{'none yet' if latest is None else f'step {latest}'}. Try a lower "
            "optimizer.learning_rate or another model.init, in a new --workdir"
        ) from error

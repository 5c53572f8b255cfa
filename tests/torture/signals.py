"""SIGTERM and Ctrl-C in every part of a run: saved, and the right exit code."""

import dataclasses
import itertools
import signal

from tests.torture import moments
from tests.torture.attack import RIGHT, Attack, Case, Outcome, lost, one_by_one, wrong
from tests.torture.laboratory import (
    EVAL,
    TRAIN,
    Laboratory,
    checkpoint_folders,
    printed_step,
)

END_SECONDS = 30  # that a cluster waits between SIGTERM and SIGKILL


@dataclasses.dataclass(frozen=True)
class Stop:
    """How a command is told to stop.

    Args:
        number: the signal.
        to_group: it goes to the workers too, as from a terminal or from Slurm.
        moment: when it comes.
        workers: how many processes decode the images.
        script: the command.
    """

    number: signal.Signals
    to_group: bool
    moment: moments.Moment
    workers: int
    script: str


PARTS = {
    "start": (moments.start, TRAIN),
    "steps": (moments.step, TRAIN),
    "validation": (moments.validation, TRAIN),
    "saving": (moments.saving, TRAIN),
    "evaluation": (moments.any_second, EVAL),
}

KINDS = {
    f"{number.name} to the {'group' if to_group else 'process'} in {part}, "
    f"{workers} workers": Stop(number, to_group, moment, workers, script)
    for number, to_group, (part, (moment, script)), workers in itertools.product(
        (signal.SIGTERM, signal.SIGINT), (True, False), PARTS.items(), (0, 2)
    )
}


def run_case(laboratory: Laboratory, case: Case, kind: Stop) -> Outcome:
    """Stops a command and gives it once more."""
    whole, rng = laboratory.whole(kind.script), case.rng()
    workdir = laboratory.prepare(kind.script)
    workers = f"--config.data.num_workers={kind.workers}"
    with laboratory.start(kind.script, workdir, workers) as started:
        kind.moment(started, workdir, whole, rng)
        printed = printed_step(started.output)
        had_ended = started.has_ended
        started.send(kind.number, to_group=kind.to_group)
        ended = started.wait(END_SECONDS)
        left_over = started.left_over(1)
    # A signal that comes after the last step may find all done.
    codes = [0] if had_ended else [128 + kind.number]
    if "finished at step" in ended.output or kind.script == EVAL:
        codes = [128 + kind.number, 0]
    fault = ended.fault(codes)
    saved = max((int(one.name) for one in checkpoint_folders(workdir)), default=0)
    outcome = laboratory.finish(kind.script, workdir)
    if outcome != RIGHT:
        return outcome
    if kind.script == TRAIN and saved < printed:
        return lost(
            f"stopped at step {printed} or later, saved only step {saved}"
            + (f"; {fault}" if fault else "")
        )
    if fault:
        return wrong(fault)
    return wrong(f"{len(left_over)} processes live on") if left_over else RIGHT


ATTACK = Attack(
    name="signals",
    does="SIGTERM or Ctrl-C to the process or to its whole group, with and without "
    "worker processes, at the start, during steps, validation, saving and evaluation; "
    "then the same command once more",
    right=f"exit code 143 or 130 within {END_SECONDS} s without a traceback, no step "
    "lost, no process left; the result is that of a run that nobody stopped, to the "
    "bit",
    weight=5,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

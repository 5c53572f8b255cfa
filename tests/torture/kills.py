"""SIGKILL at any moment: the same command goes on to the same bits."""

import dataclasses
import signal

from tests.torture import moments
from tests.torture.attack import RIGHT, Attack, Case, Outcome, one_by_one, wrong
from tests.torture.laboratory import EVAL, TRAIN, Laboratory

ORPHAN_SECONDS = 10  # that worker processes may outlive the run


@dataclasses.dataclass(frozen=True)
class Kill:
    """How a command is killed.

    Args:
        moments: when, one after another; the same command goes on after each.
        workers: how many processes decode the images.
        script: the command.
    """

    moments: tuple[moments.Moment, ...]
    workers: int = 0
    script: str = TRAIN


KINDS = {
    "once": Kill((moments.any_second,)),
    "three times": Kill((moments.any_second,) * 3),
    "at a step": Kill((moments.step,)),
    "while saving": Kill((moments.saving,)),
    "while saving, twice": Kill((moments.saving, moments.saving)),
    "while validating": Kill((moments.validation,)),
    "with worker processes": Kill((moments.step,), workers=2),
    "while evaluating": Kill((moments.any_second,), script=EVAL),
}


def run_case(laboratory: Laboratory, case: Case, kind: Kill) -> Outcome:
    """Kills a command and gives it once more."""
    whole, rng = laboratory.whole(kind.script), case.rng()
    workdir = laboratory.prepare(kind.script)
    workers = f"--config.data.num_workers={kind.workers}"
    orphans = 0
    for moment in kind.moments:
        with laboratory.start(kind.script, workdir, workers) as started:
            moment(started, workdir, whole, rng)
            started.send(signal.SIGKILL)
            orphans += len(started.left_over(ORPHAN_SECONDS))
    outcome = laboratory.finish(kind.script, workdir)
    if outcome == RIGHT and orphans:
        return wrong(f"{orphans} worker processes live on after the run's end")
    return outcome


ATTACK = Attack(
    name="kills",
    does="SIGKILL at random moments of training and evaluation, once or several times, "
    "with and without worker processes; then the same command once more",
    right="checkpoints, metrics and results are those of a run that nobody killed, to "
    f"the bit; worker processes end within {ORPHAN_SECONDS} s",
    weight=5,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

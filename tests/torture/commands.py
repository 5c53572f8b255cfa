"""Random settings given to train.py as a user gives them, with data."""

import numpy as np

from tests.torture.attack import RIGHT, Attack, Case, Outcome, one_by_one, wrong
from tests.torture.configurations import random_flags
from tests.torture.laboratory import EVAL, ROOT, TRAIN, Laboratory
from tests.torture.processes import FAILURES
from vgg_jax import cli
from vgg_jax.config import Config

ENOUGH_SECONDS = 40  # a command that still runs has been taken
ADDRESS_SPACE = 16 * 2**30

KINDS = {
    f"{count} settings for {script}": (script, count)
    for script in (TRAIN, EVAL)
    for count in (1, 2, 3)
}


def run_case(laboratory: Laboratory, case: Case, kind: tuple[str, int]) -> Outcome:
    """Gives a command with random settings; looks at the answer."""
    script, count = kind
    rng: np.random.Generator = case.rng()
    config = cli.config_file.load(ROOT / "configs/fashion_mnist_vgg.py", (Config,))
    kept = ("data_dir", "dataset")  # without the data nothing would be reached
    flags = [
        flag
        for flag in random_flags(config, rng, count + 2)
        if flag.partition("=")[0].rpartition(".")[2] not in kept
    ][:count]
    workdir = laboratory.prepare(script)
    limit = ("prlimit", f"--as={ADDRESS_SPACE}", "--core=0")
    with laboratory.start(script, workdir, *flags, before=limit) as started:
        started.wait_until(lambda: False, ENOUGH_SECONDS)
        if not started.has_ended:
            return RIGHT
        ended = started.wait()
    shown = " ".join(flag[:80] for flag in flags)
    if fault := ended.fault([0, *FAILURES]):
        return wrong(f"{shown}: {fault}"[:400])
    if ended.code and len(ended.errors) != 1:
        return wrong(f"{shown}: {len(ended.errors)} errors in place of one")
    return RIGHT


ATTACK = Attack(
    name="commands",
    does="train.py and eval.py as processes, with data and random settings",
    right="done, still at work, or an error in a line without a traceback",
    weight=2,
    kinds=KINDS,
    run=one_by_one(run_case, KINDS),
)

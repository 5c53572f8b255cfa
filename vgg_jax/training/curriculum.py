"""Section 3.1's ladder: shallow networks first, whose weights start the deeper ones."""

from collections.abc import Iterator
from pathlib import Path

import jax

from vgg_jax.config import Config, Curriculum, validate
from vgg_jax.training.program import validate_batch_size
from vgg_jax.training.workdir import is_finished, read_config


def pending_runs(
    config: Config | Curriculum, workdir: Path
) -> Iterator[tuple[Config, Path]]:
    """The trainings that are still to do, each with its folder, in their order.

    One configuration is one, in `workdir`; a curriculum's runs are in folders of their
    names below it. Runs that are finished with the same settings are left out.

    Raises:
        ValueError: a run starts from one that does not come before it, or cannot be
            trained with its settings: before the first one begins.
    """
    if isinstance(config, Config):
        yield config, workdir
        return
    names = list(config.runs)
    for i, (name, run) in enumerate(config.runs.items()):
        start = run.init_from
        if (
            start is not None
            and not Path(start).is_absolute()
            and start not in names[:i]
        ):
            raise ValueError(
                f"run {name} starts from {start!r}: expected a run before it, one of "
                f"{', '.join(names[:i]) or 'none'}"
            )
    for run in config.runs.values():
        validate(run)
        validate_batch_size(run, jax.device_count())
    for number, (name, run) in enumerate(config.runs.items(), 1):
        folder = workdir / name
        done = is_finished(folder) and read_config(folder) == run
        state = "is finished already" if done else "begins or goes on"
        print(f"run {number} of {len(names)}: {name} {state}", flush=True)
        if not done:
            yield run, folder
    print(f"all {len(names)} runs are finished, in {workdir}", flush=True)

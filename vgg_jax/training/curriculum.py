"""Section 3.1's ladder: shallow networks first, whose weights start the deeper ones."""

from collections.abc import Iterator
from pathlib import Path

import jax

from vgg_jax.config import Config, Curriculum
from vgg_jax.training import settings
from vgg_jax.training.workdir import is_finished, read_config


def runs(config: Config | Curriculum, workdir: Path) -> Iterator[tuple[Config, Path]]:
    """The trainings that are still to do, each with its folder, in their order.

    One configuration is one, in `workdir`; a curriculum's rungs are in folders of their
    names below it. Rungs that are finished with the same settings are left out.

    Raises:
        ValueError: a rung starts from one that does not come before it, or cannot be
            trained with its settings: before the first one begins.
    """
    if isinstance(config, Config):
        yield config, workdir
        return
    names = list(config.rungs)
    for i, (name, rung) in enumerate(config.rungs.items()):
        start = rung.init_from
        if (
            start is not None
            and not Path(start).is_absolute()
            and start not in names[:i]
        ):
            raise ValueError(
                f"rung {name} starts from {start!r}: expected a rung before it, one of "
                f"{', '.join(names[:i]) or 'none'}"
            )
    for rung in config.rungs.values():
        settings.check(rung, jax.device_count())
    for number, (name, rung) in enumerate(config.rungs.items(), 1):
        folder = workdir / name
        done = is_finished(folder) and read_config(folder) == rung
        state = "is finished already" if done else "begins or goes on"
        print(f"rung {number} of {len(names)}: {name} {state}", flush=True)
        if not done:
            yield rung, folder
    print(f"all {len(names)} rungs are finished, in {workdir}", flush=True)

"""This package trains networks as section 3.1 of arXiv:1409.1556 says."""

import signal

from vgg_jax import distributed
from vgg_jax.config import Config
from vgg_jax.files import Path, parse_path


def train(config: Config, workdir: Path | str) -> signal.Signals | None:
    """Trains as train.py does, in a process that something else has started.

    Every process of a run on several hosts calls it, as does every worker of Ray. It
    meets the others first, unless they have met. It may run outside of the main thread,
    where it takes no signals.

    Args:
        config: the settings of the run.
        workdir: the folder of the run; one that holds the same run goes on with it.

    Returns:
        None at the end of the training; before it, the signal that stopped the run.

    Raises:
        ValueError: settings that do not fit, or one process of several that cannot meet
            the others; and what `vgg_jax.training.loop.train` raises.
    """
    distributed.join()
    from vgg_jax.training import loop

    return loop.train(config, parse_path(workdir))

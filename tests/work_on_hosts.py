"""A command on several hosts whose steps are nothing but the wait for the others.

It stands for training, whose compiler would take most of a test's time.
"""

import argparse
import sys
import time

from vgg_jax import cli, distributed
from vgg_jax.interrupt import Interrupt


def work(values: argparse.Namespace) -> int:
    """Takes steps until a signal stops it."""
    distributed.join()
    with Interrupt() as interrupt:
        interrupt.postpone()
        for step in range(10_000):
            distributed.gather(step)
            if distributed.is_first():
                print(f"step {step}", flush=True)
            if (number := interrupt.requested()) is not None:
                print(f"stopped at step {step}", file=sys.stderr, flush=True)
                return cli.STOPPED + number
            time.sleep(0.1)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.command(work, cli.Parser("work", None)))

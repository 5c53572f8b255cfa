"""A run that reads by threads and by worker processes, and breaks off in the middle.

It prints the numbers of the examples that it has read and how much shared memory is
left after reading, and ends by an exception while the devices compute and more batches
are on their way.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.config import DataConfig
from vgg_jax.data.pipeline import train_batches

SIZE, SIDE, CHANNELS, BATCH = 30, 64, 3, 7
THREADS = DataConfig(
    dataset="folder", crop=SIDE, scale_min=SIDE, scale_max=SIDE, num_threads=2
)
WORKERS = dataclasses.replace(THREADS, num_workers=2)


class Numbers:
    """Pictures of one color, which is their number."""

    class_names = ("one",)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        image = np.full((SIDE, SIDE, CHANNELS), index, np.uint8)
        png = cv2.imencode(".png", image)[1].tobytes()
        return {"image": png, "label": 0, "name": str(index)}


def read(config: DataConfig) -> Any:
    """Begins to read training batches."""
    return train_batches(
        Numbers(), config, channels=CHANNELS, batch_size=BATCH, seed=0, start_step=0
    )


def shared_memory() -> set[str]:
    """The pieces of shared memory that there are."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def numbers_of(batches: Any) -> list[int]:
    """The numbers of the examples in as many epochs as a batch has rows."""
    epochs = itertools.islice(batches, SIZE)
    return [int(number) for batch in epochs for number in batch["image"][:, 0, 0, 0]]


def main() -> None:
    before = shared_memory()
    facts: dict[str, Any] = {}
    with contextlib.closing(read(WORKERS)) as batches:
        facts["workers"] = numbers_of(batches)
    del batches
    deadline = time.monotonic() + 10  # a thread of Grain's clears it away
    while (shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    facts["shared memory"] = len(shared_memory() - before)
    threads, worker = read(THREADS), read(dataclasses.replace(WORKERS, num_workers=1))
    facts["threads"] = numbers_of(threads)
    print(json.dumps(facts), flush=True)
    image = jax.device_put(next(worker)["image"])
    computing = jax.jit(lambda x: jnp.tanh(x.astype(jnp.float32)).sum())(image)
    raise RuntimeError(f"broken off while {type(computing).__name__} is computed")


if __name__ == "__main__":
    main()

"""Times JAX for cpu.py: the program that train.py runs for a configuration."""

import json
import sys
from typing import Any

import jax

from benchmarks.cases import random_batch
from benchmarks.worker import serve
from vgg_jax.compilation import onednn_options, prepare_jax
from vgg_jax.config import from_dict
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.program import build_program


def main(config: dict[str, Any], seconds: float) -> None:
    """Answers requests for the times of a configuration's steps."""
    jax.config.update("jax_platforms", "cpu")
    prepare_jax()
    mesh = make_mesh()
    # As a run of `train.py` that is longer than `LONG_RUN`.
    program = build_program(from_dict(config), mesh).with_options(onednn_options())
    batch = random_batch(program)
    head = ExampleMetrics(CLASSIFICATION.objective, with_boxes=False)
    key = jax.random.key(1)
    state = program.init(jax.random.key(0))

    def forward(count: int) -> None:
        for _ in range(count):
            rows = shard_batch(mesh, batch)
            extras = {name: rows[name] for name in head.extras}
            metrics = program.network(state).run(head, rows["image"], None, extras)
            jax.block_until_ready(metrics)

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, sums = program.train_step(state, shard_batch(mesh, batch), key)
            jax.block_until_ready(sums)

    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    serve(parameters, {"forward": forward, "train": train}, seconds)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

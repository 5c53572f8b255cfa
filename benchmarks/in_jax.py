"""Times JAX for cpu.py: the program that train.py runs, for a name in cases.py."""

import sys

import jax
import numpy as np
from cases import CASES
from worker import serve

from vgg_jax.compilation import prepare_jax
from vgg_jax.distributed import make_mesh, shard_batch
from vgg_jax.training.objectives import CLASSIFICATION, ExampleMetrics
from vgg_jax.training.program import build_program


def main(name: str, seconds: float) -> None:
    """Answers requests for the times of a case's steps."""
    jax.config.update("jax_platforms", "cpu")
    prepare_jax()
    mesh = make_mesh()
    program = build_program(CASES[name], mesh)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, program.batch["image"].shape, np.uint8),
        "label": rng.integers(0, 10, program.batch["label"].shape, np.int32),
        "weight": np.ones(program.batch["weight"].shape, np.float32),
    }
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
    main(sys.argv[1], float(sys.argv[2]))

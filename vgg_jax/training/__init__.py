"""Section 3.1: the optimizer, the sharded step, checkpoints and the loop."""

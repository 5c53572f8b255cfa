"""Section 3.1: the optimiser, the sharded step, checkpoints and the loop."""

"""Training as in section 3.1: optimizer, sharded step, checkpoints and the loop."""

"""Images from disk to batches of numpy arrays."""

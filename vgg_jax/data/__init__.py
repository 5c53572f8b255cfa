"""This package brings images from disk to batches of numpy arrays."""
